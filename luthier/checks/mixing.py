"""Every tuner with every objective on every kind of model: it trains, or it refuses in one clear line.

A cell is a tuner, an objective and one of the objective's worlds. Two steps of the core's loop decide: the loss is finite
and what the tuner trains has moved, or a `LuthierError` says why not. Nothing else counts as an answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from luthier.checks import objectives
from luthier.checks._battery import example, pairs
from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import LuthierError, Objective, Tuner
from luthier.core.references import untuned_copy

WORKS = "works"


@dataclass(frozen=True)
class Cell:
    """`world` is the label of one of the objective's worlds, with the architecture."""

    tuner: str
    objective: str
    world: str

    @property
    def name(self) -> str:
        return f"{self.tuner}-{self.objective}-{self.world}"


@cache
def _methods(axis: str) -> dict[str, Any]:
    return {name: example(axis, name) for at, name in pairs() if at == axis}


@cache
def worlds(objective: str) -> dict[str, objectives.World]:
    """The objective's worlds; those with a task head also on a decoder."""
    found = objectives.worlds(_methods("objectives")[objective])
    decoders = [replace(w, architecture="llama-classifier") for w in found if w.architecture == "bert-classifier"]
    return {f"{w.label}, {w.architecture}": w for w in [*found, *decoders]}


def cells() -> list[Cell]:
    """All of them, in order."""
    return [
        Cell(tuner, objective, world)
        for tuner in _methods("tuners")
        for objective in _methods("objectives")
        for world in worlds(objective)
    ]


def mix(cell: Cell) -> str:
    """`WORKS`, or the one line that refuses. Raises CheckFailed, or whatever broke."""
    tuner: Tuner = _methods("tuners")[cell.tuner]
    objective: Objective = _methods("objectives")[cell.objective]
    world = worlds(cell.objective)[cell.world]
    base = world.model()
    task = "seq2seq_lm" if base.config.is_encoder_decoder else objective.task
    rows = 3 if objective.group == 1 else objective.group  # a group is never split
    settings = TrainSettings(
        max_steps=2,
        per_device_train_batch_size=rows,
        learning_rate=0.01,
        warmup_ratio=0.0,
        lr_scheduler_type="constant",
    )
    references = world.untuned(objective, untuned_copy(base, tuner))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = tuner.wrap(base, task, 0)
            loop = Loop(model, tuner, objective, list(world.examples), settings, PAD, references=references)
            before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            fitted = loop.fit()
    except LuthierError as error:
        require(bool(str(error)) and "\n" not in str(error), f"{cell.name}: the refusal must be one clear line")
        return str(error)
    require(math.isfinite(fitted.loss), f"{cell.name}: the loss is {fitted.loss}")
    after = dict(model.named_parameters())  # without what an objective trained beside the model
    moved = [n for n, p in before.items() if n in after and not torch.equal(after[n].detach(), p)]
    require(bool(moved), f"{cell.name}: nothing moved")
    return WORKS
