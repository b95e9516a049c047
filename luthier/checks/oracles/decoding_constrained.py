"""All token strings of a small vocabulary, one by one, judged by Python's `re`; greedy and sampling by plain forwards."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import product

from luthier.checks._compare import require
from luthier.checks._models import PAD, VOCABULARY
from luthier.checks.decoding import PROMPTS, World, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

WORDS = {11: "a", 12: "b", 25: "ab", 30: "ba", 41: "1", 52: "12", 64: ",", 9: "a,"}
TOKENS = tuple(WORDS.get(i, "").encode() for i in range(VOCABULARY))
STOP = 3
EXPRESSIONS = ("(ab)*a?", "[ab]{2}(,[ab]{2})*", "(a|b1|aba),?1*", "a+b", "(b|,)?12|ab,+", ".*b.", "(?:a|ab)(?:b1|1,)")
"""Loops, choices that share a beginning, texts that tokens cut in several ways, ends that few tokens reach."""


def _told(expression: str, **more: object) -> dict[str, object]:
    return {"regex": expression, "tokens": TOKENS, **more}


def _answers(expression: str, room: int) -> list[tuple[int, ...]]:
    """Every string of at most `room` tokens that the expression matches whole."""
    pattern, strings = re.compile(expression), [s for n in range(room + 1) for s in product(WORDS, repeat=n)]
    return [s for s in strings if pattern.fullmatch("".join(WORDS[t] for t in s))]


def _after(answers: list[tuple[int, ...]]) -> dict[tuple[int, ...], set[int]]:
    """What may follow each beginning of an answer."""
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for answer in answers:
        for t, token in enumerate(answer):
            found[answer[:t]].add(token)
        found[answer].add(STOP)
    return found


def oracle_brute_force() -> None:
    """What may follow is, for every beginning and every room, what some match goes on with."""
    for expression in EXPRESSIONS:
        decoder = method(__name__, **_told(expression))
        for room in (2, 3, 5):
            limits = Limits(max_new_tokens=room, stop_ids=(STOP,))
            for said, may in _after(_answers(expression, room)).items():
                found = decoder.allowed(said, limits)
                require(
                    found == sorted(may), f"{expression}, {room} tokens, after {said}: {found}, by hand {sorted(may)}"
                )


def oracle_greedy() -> None:
    """The likeliest token at a time of those that some match goes on with, from plain forwards without a cache."""
    for world in worlds(method(__name__)):
        model = world.model()
        for expression in EXPRESSIONS:
            after = _after(_answers(expression, 4))
            limits = Limits(max_new_tokens=4, stop_ids=(STOP,), pad_id=PAD)
            said = method(__name__, **_told(expression)).generate(model, PROMPTS, limits)
            for prompt, g in zip(PROMPTS, said):
                wanted = _greedy(world, model, prompt, after, 4)
                found = [*g.ids, STOP] if g.stopped else g.ids
                require(found == wanted, f"{world.label}, {expression}: {found}, by hand {wanted}")


def _greedy(
    world: World, model: object, prompt: list[int], after: dict[tuple[int, ...], set[int]], room: int
) -> list[int]:
    said: list[int] = []
    while len(said) < room:
        logp = world.logp(model, prompt, said)
        said.append(max(sorted(after[tuple(said)]), key=lambda t: float(logp[t])))
        if said[-1] == STOP:
            break
    return said


def oracle_sampling() -> None:
    """Copies of a prompt say each first token as often as the model's distribution over what may follow has it."""
    n, world = 2000, worlds(method(__name__))[0]
    model, may = world.model(), sorted(_after(_answers("[ab]{2}(,[ab]{2})*", 5))[()])
    decoder = method(
        __name__, **_told("[ab]{2}(,[ab]{2})*", choose={"name": "nucleus", "top_p": 1.0, "temperature": 3.0})
    )
    said = decoder.generate(model, [PROMPTS[0]] * n, Limits(max_new_tokens=5, stop_ids=(STOP,), pad_id=PAD, seed=4))
    p = (world.scores(model, PROMPTS[0], [])[may] / 3.0).softmax(-1)
    count = Counter(g.ids[0] for g in said)
    require(set(count) <= set(may), f"says {set(count) - set(may)}")
    for token, share in zip(may, p.tolist()):
        apart, spread = abs(count[token] - n * share), (n * share * (1 - share)) ** 0.5
        require(apart <= 5 * spread + 1, f"token {token}: {count[token]} of {n}, {n * share:.1f} expected")
