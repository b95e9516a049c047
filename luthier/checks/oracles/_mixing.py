"""What oracles of decoders of several models share: a plain loop in float64, and transformers' `generate` with a hook.

Both get `formula`, the method's equation written by hand: log-probabilities (V,) by role to unnormalised scores (V,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, World, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

Formula = Callable[[dict[str, Tensor]], Tensor]


def _cast(decoder: Any, world: World) -> dict[str, Any]:
    """The models by role, in float64; those of a role of several are numbered."""
    found = {}
    for role in decoder.roles:
        value = getattr(decoder, role)
        for i, one in enumerate(value if isinstance(value, tuple) else [value]):
            model = world.model() if one is None else world.other(one).model
            found[f"{role}{i}" if isinstance(value, tuple) else role] = model.double()
    return found


def _cases(file_name: str, options: dict[str, Any]) -> Iterator[tuple[World, Any, dict[str, Any], Any]]:
    """Every world, with the bound decoder, the models by role, and the one that is asked."""
    decoder = method(file_name, **options)
    for world in worlds(decoder):
        models = _cast(decoder, world)
        asked = models[next(role for role in decoder.roles if getattr(decoder, role) in (None, ()))]
        yield world, decoder.for_models(world.other), models, asked


@torch.no_grad()
def against_loop(file_name: str, formula: Formula, **options: Any) -> None:
    """Whole forwards of every model in float64 for every token: greedy tokens and their log-probability."""
    for world, decoder, models, _ in _cases(file_name, options):
        limits = Limits(max_new_tokens=6, pad_id=PAD)
        for prompt, g in zip(PROMPTS, decoder.generate(world.model(), PROMPTS, limits)):
            said: list[int] = []
            total = 0.0
            for _ in range(limits.max_new_tokens):
                z = formula({role: world.logp(m, prompt, said) for role, m in models.items()}).log_softmax(-1)
                said.append(int(z.argmax()))
                total += float(z.max())
            require(g.ids == said, f"{world.label}, {options}: {g.ids}, the loop says {said}")
            require(abs(g.logp - total) < 1e-3, f"{world.label}, {options}: logp {g.logp}, the loop says {total}")


class _Hook(LogitsProcessor):
    """The other models, run on what `generate` has so far."""

    def __init__(self, world: World, models: dict[str, Any], prompt: Sequence[int], formula: Formula):
        self.world, self.models, self.prompt, self.formula = world, models, prompt, formula

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        said = input_ids[0, 1 if self.world.kind == "encoder-decoder" else len(self.prompt) :].tolist()
        found = {
            role: scores[0].double().log_softmax(-1) if m is None else self.world.logp(m, self.prompt, said)
            for role, m in self.models.items()
        }
        return self.formula(found)[None]


@torch.no_grad()
def against_generate(file_name: str, formula: Formula, **options: Any) -> None:
    """transformers drives the asked model, a `LogitsProcessor` adds the others; with and without a stop token."""
    for world, decoder, models, asked in _cases(file_name, options):
        beside = {role: None if m is asked else m for role, m in models.items()}
        free = decoder.generate(world.model(), PROMPTS[:3], Limits(max_new_tokens=6, pad_id=PAD))
        for stop_ids in ((), (free[0].ids[2],)):
            limits = replace(Limits(max_new_tokens=6, pad_id=PAD), stop_ids=stop_ids)
            for prompt, g in zip(PROMPTS[:3], decoder.generate(world.model(), PROMPTS[:3], limits)):
                ids = torch.tensor([list(prompt)])
                out = asked.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, num_beams=1,
                    eos_token_id=list(stop_ids) or None, pad_token_id=PAD,
                    logits_processor=LogitsProcessorList([_Hook(world, beside, prompt, formula)]),
                )[0].tolist()  # fmt: skip
                said = out[1 if world.kind == "encoder-decoder" else len(prompt) :]
                wanted = next((said[:i] for i, t in enumerate(said) if t in stop_ids), said)
                require(g.ids == wanted, f"{world.label}: {g.ids}, transformers says {wanted}")
