"""Token shift: where, token by token, a tuned model writes what the untuned one would not have written.

    o_1 ... o_T ~ greedy of the tuned model after a question q            both models then read q, o_1 ... o_{t-1}
    eta_t = |{v : P_base(v | q, o_<t) > P_base(o_t | q, o_<t)}| + 1       rank of o_t for the untuned model, ties by token id
    KL_t  = KL( P_tuned(. | q, o_<t) || P_base(. | q, o_<t) )             in nats

    unshifted  eta = 1        marginal  2 <= eta <= 3        shifted  eta > 3

    rows            questions, drawn from the training rows by the run's seed
    max_new_tokens, stop   of an answer; the token that ends it counts as one of it, and its shares are also told without it
    layout          what the untuned model reads around each question: a layout file (core/layout.py) with its first `k`
                    examples, question and answer in it as they are; "" is the same tokens as the tuned model
    shown           answers that are kept with every token's numbers, for the report
    every           steps between two looks, besides those before the first step and after the last
In a table: shares and mean KL of all tokens, by position and by class of token, and the tokens most often shifted.
Cost:       an answer to each question, and a forward of each model over it, a look.
Paper:      Lin et al., 2024, "The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning",
            arXiv:2312.01552, section 2.
Departures: questions are those of the run. The classes of tokens are our own lists of words.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from luthier.core.batch import GroupExample, TextExample
from luthier.core.layout import Layout, layout
from luthier.core.logprobs import kl
from luthier.core.loop import Loop
from luthier.core.method import Analysis, LuthierError
from luthier.core.mixture import shared_tokens
from luthier.core.subject import Prompt, Subject

TOP, AT_ONCE = 10, 8
STYLE = frozenset(
    re.findall(
        r"[\w']+",
        """
    hello hi hey dear welcome thank thanks please sorry apologize apologise unfortunately sure certainly absolutely gladly happy
    glad great of course well so however therefore thus moreover additionally furthermore finally first firstly second secondly
    third thirdly lastly overall also but while although instead remember note important keep mind hope let know feel free help
    helps assist assistance further questions question cannot can't unable must as an ai assistant model would could may might
    """,
    )
)
"""Words of greeting, order, care and offers of help: form more than content."""

Kind = Callable[[int, int, int], str | None]
"""(answer, place, token) to the name of its class; None leaves it out."""


@dataclass(frozen=True)
class Shift:
    """One answer: T tokens with rank, probability and KL of each. `ended`: the last one is what ended it."""

    tokens: list[int]
    rank: list[int]
    p_base: list[float]
    p_tuned: list[float]
    kl: list[float]
    ended: bool


def shifts(
    tuned: Subject,
    base: Callable[[], AbstractContextManager[Subject]],
    asked: Sequence[list[int]],
    contexts: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> list[Shift]:
    """The tuned model's answers to `asked`, ids, and what the untuned one thinks of them after `contexts`.

    `base` is entered only after the tuned model was asked: they may be one model that is switched.
    """
    longest = max((len(ids) for ids in (*asked, *contexts)), default=0) + max_new_tokens
    if tuned.window is not None and longest > tuned.window:
        raise LuthierError(
            f"token shift: {longest} tokens of prompt and answer do not fit the window of {tuned.window}: use shorter prompts, "
            "fewer examples around them or fewer new tokens"
        )
    said = [(g.ids, g.stopped) for g in tuned.generations(asked, max_new_tokens, stop, with_end=True)]
    out: list[Shift] = []
    for at in range(0, len(said), AT_ONCE):
        some = [ids for ids, _ in said[at : at + AT_ONCE]]
        theirs = list(tuned.continued(list(zip(asked[at:], some))))
        with base() as other:
            ours = list(other.continued(list(zip(contexts[at:], some))))
        for ids, (_, ended), p, q in zip(some, said[at:], theirs, ours):
            width = min(p.shape[-1], q.shape[-1])
            out.append(_shift(ids, ended, p[:, :width].cpu(), q[:, :width].cpu()))
    return out


def _shift(ids: list[int], ended: bool, tuned: Tensor, base: Tensor) -> Shift:
    """From log-probabilities (T, V) of both."""
    target = torch.tensor(ids, dtype=torch.long)[:, None]  # (T, 1)
    own, theirs = base.gather(1, target), tuned.gather(1, target)
    ties = (base == own) & (torch.arange(base.shape[1])[None] < target)
    rank = 1 + (base > own).sum(1) + ties.sum(1)
    distance = kl(tuned.double(), base.double()).clamp(min=0)
    return Shift(ids, rank.tolist(), own[:, 0].exp().tolist(), theirs[:, 0].exp().tolist(), distance.tolist(), ended)


def compare(
    base: Subject, tuned: Subject, prompts: Sequence[Prompt], max_new_tokens: int = 64, stop: Sequence[str] = (),
    around: str | Layout = "", k: int = 3,
) -> list[Shift]:  # fmt: skip
    """The shifts between any two models with the same tokens, on prompts of your own. `around`: a layout for the base."""
    shared_tokens([(base.name or "the base", base.tokenizer), (tuned.name or "the tuned model", tuned.tokenizer)])
    asked = tuned.prompt_ids(prompts)
    contexts = asked if not around else [base.encode(layout(around, k).prompt(p)) for p in prompts]
    return shifts(tuned, lambda: nullcontext(base), asked, contexts, max_new_tokens, stop)


def shares(found: Sequence[Shift], special: frozenset[int] | set[int] = frozenset()) -> dict[str, float]:
    """Shares of the three kinds of token and the mean KL, of all tokens that are not `special`."""
    rows = [(r, d) for s in found for t, r, d in zip(s.tokens, s.rank, s.kl, strict=True) if t not in special]
    return _shares(rows)


def _shares(rows: Sequence[tuple[int, float]]) -> dict[str, float]:
    n = len(rows)
    kinds = Counter(_name(rank) for rank, _ in rows)
    return {"tokens": n} | {
        name: kinds[name] / n if n else 0.0 for name in ("unshifted", "marginal", "shifted")
    } | {"kl": sum(d for _, d in rows) / n if n else 0.0}  # fmt: skip


def _name(rank: int) -> str:
    return "unshifted" if rank == 1 else "marginal" if rank <= 3 else "shifted"


def by(found: Sequence[Shift], kind: Kind) -> dict[str, dict[str, float]]:
    """`shares` by class of token."""
    rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for i, one in enumerate(found):
        for t, (token, rank, distance) in enumerate(zip(one.tokens, one.rank, one.kl, strict=True)):
            if (name := kind(i, t, token)) is not None:
                rows[name].append((rank, distance))
    return {name: _shares(rows[name]) for name in sorted(rows)}


def kind_of(text: str) -> str:
    """style, content, number or mark: what sort of word a token's text is."""
    word = text.strip().lower().strip("▁Ġ")
    if word in STYLE:
        return "style"
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
        return "number"
    return "content" if re.search(r"\w", word) else "mark"


def table_of(found: Sequence[Shift], tokenizer: Any, prompts: Sequence[str] = (), shown: int = 3) -> dict[str, Any]:
    """Everything that is told of some answers, as plain values."""
    special, text = set(tokenizer.all_special_ids), {t: tokenizer.decode([t]) for s in found for t in s.tokens}
    ends = {s.tokens[-1] for s in found if s.ended}
    apart = special | ends
    positions = by(found, lambda i, t, token: f"{t:05d}")
    classes = by(found, lambda i, t, token: "special" if token in apart else kind_of(text[token]))
    often = Counter(t for s in found for t, r in zip(s.tokens, s.rank, strict=True) if _name(r) == "shifted")
    return {
        **shares(found),
        "without_special": shares(found, apart),
        "by_position": [{"position": int(t), **row} for t, row in positions.items()],
        "by_class": classes,
        "most_shifted": [[text[t], n] for t, n in sorted(often.items(), key=lambda e: (-e[1], e[0]))[:TOP]],
        "coloured": [
            {"prompt": prompts[i] if prompts else "", "tokens": [
                {"text": text[t], "kind": _name(r), "rank": r, "p_base": round(p, 6), "kl": round(d, 6)}
                for t, r, p, d in zip(s.tokens, s.rank, s.p_base, s.kl, strict=True)
            ]} for i, s in enumerate(found[:shown])
        ],
    }  # fmt: skip


@dataclass(frozen=True)
class TokenShift(Analysis):
    """`tokenizer` is filled in by the run."""

    paper: ClassVar[str] = "arXiv:2312.01552"
    cards: ClassVar[tuple[int, ...]] = (6,)
    tasks: ClassVar[frozenset[str]] = frozenset({"causal_lm"})
    untuned: ClassVar[bool] = True

    rows: int = 32
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    layout: str = ""
    k: int = 3
    shown: int = 3
    every: int = 0
    tokenizer: Any = None

    @classmethod
    def example(cls) -> Self:
        return cls(rows=3, max_new_tokens=4)

    def for_data(self, tokenizer: Any, read: Callable[[Any], Sequence[dict[str, Any]]]) -> Self:
        return replace(self, tokenizer=tokenizer)

    def table(self, loop: Loop) -> dict[str, Any]:
        """Shares, mean KL, and both by position and class; see the header."""
        tuned, rng = Subject(loop.plain, self.tokenizer), random.Random(f"{loop.seed}/token shift")
        room = (tuned.window or 10**9) - self.max_new_tokens
        known = [ids for ids in map(_prompt, loop.examples) if len(ids) <= room] or [_prompt(loop.examples[0])]
        asked = contexts = rng.sample(known, min(self.rows, len(known)))
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in asked]
        if self.layout:
            around = layout(self.layout, self.k)
            contexts = [tuned.encode(around.constant + text) for text in texts]

        @contextmanager
        def base() -> Iterator[Subject]:
            with loop.bare.untuned() as other:
                yield Subject(other.plain, self.tokenizer)

        found = shifts(tuned, base, asked, contexts, self.max_new_tokens, self.stop)
        return table_of(found, self.tokenizer, texts, self.shown)


def _prompt(example: Any) -> list[int]:
    """What stands in front of a row's first trained token."""
    if isinstance(example, GroupExample):
        return list(example.prompt)
    if isinstance(example, TextExample):
        first = example.counts.index(True) if any(example.counts) else len(example)
        return list(example.ids[: max(1, first)])
    raise LuthierError(f"token_shift: rows of {type(example).__name__} have no prompt that is answered: not supported")
