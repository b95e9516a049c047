"""`luthier plan`: parameters, memory, steps and time of a recipe, before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.core import config, meter
from luthier.core.loop import Loop
from luthier.core.references import References, untuned_copy
from luthier.core.teacher import Top, predicted
from luthier.verbs.run import prepare, teacher_of


@dataclass
class Plan:
    """What a run would cost.

    memory_bytes   parameters, gradients, optimiser state and the graph of one micro-batch
    step_seconds   of one measured optimiser step (which is thrown away)
    """

    model: str
    tuner: str
    objective: str
    trainable_parameters: int
    total_parameters: int
    base_parameters: int
    rows: int
    rows_rejected: int
    tokens_per_epoch: int
    steps: int
    memory_bytes: int
    step_flops: int
    step_seconds: float
    total_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        share, of_base = (100 * self.trainable_parameters / n for n in (self.total_parameters, self.base_parameters))
        lines = [
            f"{self.model} by {self.tuner} under {self.objective}",
            f"trainable params: {self.trainable_parameters:,} || all params: {self.total_parameters:,} "
            f"|| trainable%: {share:.4f}",
            f"         {of_base:.4f}% of the {self.base_parameters:,} of the base",
            f"rows:    {self.rows:,} ({self.rows_rejected:,} rejected), {self.tokens_per_epoch:,} tokens an epoch",
            f"steps:   {self.steps:,}",
            f"memory:  {self.memory_bytes / 2**20:,.0f} MiB for parameters, gradients, optimiser and one graph",
            f"compute: {self.step_flops:.2e} FLOPs a micro-batch",
            f"time:    {self.step_seconds:.3f} s a step on this machine, {self.total_seconds / 60:,.1f} min in all",
        ]
        return "\n".join(lines)


def plan(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Plan:
    """Load, prepare and take three steps that are thrown away. Nothing is written."""
    told = config.recipe(recipe, overrides)
    if told.train.torch_threads:
        torch.set_num_threads(told.train.torch_threads)
    ready = prepare(told)
    untuned = None
    if ready.objective.reference == "model":
        untuned = References(model=teacher_of(ready) or untuned_copy(ready.loaded.model, ready.tuner))
    elif ready.objective.reference == "top":
        untuned = References(top=[_unasked(e, ready.objective.k) for e in ready.train.examples])
    elif ready.objective.reference:
        rows = ready.train.examples
        companions = ready.objective.companions(rows)
        untuned = References(_zeros(rows), None if companions is None else _zeros(companions))
    model = ready.tuner.wrap(ready.loaded.model, ready.loaded.task, told.seed)
    pad = ready.loaded.tokenizer.pad_token_id
    loop = Loop(
        model, ready.tuner, ready.objective, ready.train.examples, told.train, pad, told.seed, references=untuned
    )
    total = loop.total
    loop._prepare()
    loop.wrapped.train()
    seconds = []
    for _ in range(min(3, total)):
        begun = time.perf_counter()
        loop._step()
        loop.step_index += 1
        seconds.append(time.perf_counter() - begun)
    step = min(seconds)
    cost = loop.cost
    memory = meter.memory_bytes(model, loop.optimizer, cost["saved_tensor_bytes"])
    return Plan(
        ready.loaded.name, ready.tuner.name, ready.objective.name, cost["trainable_parameters"],
        cost["total_parameters"], cost["base_parameters"], ready.train.report.examples, len(ready.train.report.rejected),
        ready.train.report.tokens, total, memory, cost["forward_flops"] + cost["backward_flops"], step, step * total,
    )  # fmt: skip


def _zeros(groups: Sequence[Any]) -> list[torch.Tensor]:
    """In place of log-probabilities that would have to be computed."""
    return [torch.zeros(len(g.answers)) for g in groups]


def _unasked(example: Any, k: int) -> Top:
    """In place of what a teacher would have to be asked."""
    n = len(predicted(example))
    return torch.arange(k).expand(n, k), torch.full((n, k), -1.0 - math.log(k))
