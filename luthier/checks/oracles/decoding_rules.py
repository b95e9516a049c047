"""The product of base and rules by a float64 loop over tokens, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, World, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {"after": "drop", "length": 2}, {"strength": 0.0}, {"ids": {}}, {"diversity": 0.0}, {"openings": ()},
)  # fmt: skip
MOST = 7


def _product(told: Any, logp: Tensor, prompt: Sequence[int], said: Sequence[int], ends: Sequence[int]) -> Tensor:
    """log p (V,) by the header's equation, token by token, both models normalised."""
    start = 0
    for at in range(len(prompt) - 1):
        if told.openings and list(prompt[at : at + 2]) == [9, 41]:
            start = at + 2
    t = len(said)
    r = []
    for w in range(len(logp)):
        score = 0.0
        if w in ends:
            score += told.strength * t / told.length if t < told.length else told.strength * (told.after == "hold")
        elif said.count(w) + list(prompt)[start:].count(w) > 0:
            score -= told.diversity
        r.append(score + told.ids.get(w, 0.0))
    return (logp.log_softmax(-1) + torch.tensor(r, dtype=torch.float64).log_softmax(-1)).log_softmax(-1)


def _stops(decoder: Any, model: Any) -> tuple[tuple[int, ...], ...]:
    """No stop token, and one that would be said."""
    free = decoder.generate(model, PROMPTS, Limits(max_new_tokens=MOST, pad_id=PAD))
    return (), (free[0].ids[3],)


@torch.no_grad()
def oracle_float64_loop() -> None:
    for options in SETTINGS:
        decoder = method(__name__, **options)
        for world in worlds(decoder):
            exact = world.model().double()
            for stop_ids in _stops(decoder, world.model()):
                limits = Limits(max_new_tokens=MOST, pad_id=PAD, stop_ids=stop_ids)
                for prompt, g in zip(PROMPTS, decoder.generate(world.model(), PROMPTS, limits)):
                    said: list[int] = []
                    token, logp = -1, 0.0
                    while len(said) < MOST and token not in stop_ids:
                        base = world.logp(exact, prompt, said)
                        token = int(_product(decoder, base, prompt, said, stop_ids).argmax())
                        logp += float(base[token])
                        said += [token] * (token not in stop_ids)
                    require(g.ids == said, f"{world.label}, {options}: {g.ids}, the loop says {said}")
                    require(abs(g.logp - logp) < 1e-3, f"{world.label}, {options}: logp {g.logp}, the loop says {logp}")


class _Hook(LogitsProcessor):
    """The rules, on what `generate` has so far."""

    def __init__(self, told: Any, world: World, prompt: Sequence[int], ends: Sequence[int]):
        self.told, self.prompt, self.ends = told, prompt, ends
        self.start = 1 if world.kind == "encoder-decoder" else len(prompt)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        said = input_ids[0, self.start :].tolist()
        return _product(self.told, scores[0].double(), self.prompt, said, self.ends)[None]


@torch.no_grad()
def oracle_transformers() -> None:
    decoder = method(__name__)
    for world in worlds(decoder):
        model = world.model()
        for stop_ids in _stops(decoder, model):
            limits = Limits(max_new_tokens=MOST, pad_id=PAD, stop_ids=stop_ids)
            for prompt, g in zip(PROMPTS, decoder.generate(model, PROMPTS, limits)):
                ids = torch.tensor([list(prompt)])
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False, num_beams=1,
                    eos_token_id=list(stop_ids) or None, pad_token_id=PAD,
                    logits_processor=LogitsProcessorList([_Hook(decoder, world, prompt, stop_ids)]),
                )[0].tolist()  # fmt: skip
                said = out[1 if world.kind == "encoder-decoder" else len(prompt) :]
                wanted = next((said[:i] for i, t in enumerate(said) if t in stop_ids), said)
                require(g.ids == wanted, f"{world.label}: {g.ids}, transformers says {wanted}")
