"""All lists of labels by brute force in float64, and transformers' `generate` with a hook written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, World, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

LABELS = ((11, 25), (11, 25, 30), (12,), (64, 12))
SEP, STOP = 50, 3
LIMITS = Limits(max_new_tokens=12, stop_ids=(STOP,), pad_id=PAD)  # room for all labels, separators and the stop


def _lists() -> list[list[int]]:
    """Every list of different labels, joined by the separator, with the stop token."""
    found = []
    for size in range(1, len(LABELS) + 1):
        for chosen in permutations(LABELS, size):
            joined = [t for label in chosen for t in (*label, SEP)]
            found.append([*joined[:-1], STOP])
    return found


@torch.no_grad()
def _scores(world: World, model: Any, prompt: Sequence[int], said: Sequence[int]) -> list[torch.Tensor]:
    """For each token of `said`, the log-distribution (V,) that it was drawn from, by one plain forward in float64."""
    if world.kind == "decoder":
        logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
    else:
        read = torch.tensor([[model.config.decoder_start_token_id, *said[:-1]]])
        logits = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=read).logits[0]
    return list(logits.log_softmax(-1))


def _after(said: Sequence[int]) -> set[int]:
    """What may follow, by comparing with every list."""
    return {full[len(said)] for full in _lists() if list(full[: len(said)]) == list(said) and len(full) > len(said)}


def oracle_brute_force() -> None:
    """With as many beams as there are lists, the best of all lists is found, for both scores and several penalties."""
    lists = _lists()
    for world in worlds(method(__name__)):
        model = world.model().double()
        told = [(full, _scores(world, model, p, full)) for p in PROMPTS[:2] for full in lists]
        for score, penalty in (("model", 0.0), ("model", 1.0), ("allowed", 0.0), ("allowed", 0.7)):
            decoder = method(
                __name__, sequences=LABELS, separator_id=SEP, num_beams=80, score=score, length_penalty=penalty
            )
            for row, g in enumerate(decoder.generate(model, PROMPTS[:2], LIMITS)):
                worth = {}
                for full, logp in told[row * len(lists) : (row + 1) * len(lists)]:
                    total = 0.0
                    for t, token in enumerate(full):
                        among = logp[t][sorted(_after(full[:t]))].logsumexp(0) if score == "allowed" else 0.0
                        total += float(logp[t][token] - among)
                    own = sum(float(x[token]) for x, token in zip(logp, full))
                    worth[tuple(full)] = (total / len(full) ** penalty, own)
                best = max(worth, key=lambda full: worth[full][0])
                require([*g.ids, STOP] == list(best), f"{world.label}, {score}: {g.ids}, the best of all is {best}")
                require(abs(g.logp - worth[best][1]) < 1e-3, f"logp {g.logp}, by hand {worth[best][1]}")


def oracle_transformers() -> None:
    """Greedy, and three beams, with what may follow found by comparing with every list."""
    for world in worlds(method(__name__)):
        model = world.model()
        for beams in (1, 3):
            decoder = method(__name__, sequences=LABELS, separator_id=SEP, num_beams=beams)
            for prompt, g in zip(PROMPTS, decoder.generate(model, PROMPTS, LIMITS)):
                skip = 1 if world.kind == "encoder-decoder" else len(prompt)

                def may(_: int, ids: torch.Tensor, skip: int = skip) -> list[int]:
                    return sorted(_after(ids[skip:].tolist())) or [PAD]

                ids = torch.tensor([list(prompt)])
                out = model.generate(  # type: ignore[operator]
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                    num_beams=beams, prefix_allowed_tokens_fn=may, eos_token_id=STOP, pad_token_id=PAD,
                )[0, skip:].tolist()  # fmt: skip
                wanted = out[: out.index(STOP)] if STOP in out else out
                require(g.ids == wanted, f"{world.label}, {beams} beams: {g.ids}, transformers says {wanted}")
