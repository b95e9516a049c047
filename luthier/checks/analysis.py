"""What every analysis keeps: it looks at a run and leaves it as it is.

A world is a short run on tiny data; the analysis looks at it between two steps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._battery import on, when
from luthier.checks._compare import CheckFailed, require, same
from luthier.checks._models import PAD, labelled, model_of, sources_targets, texts
from luthier.checks.data import vocabulary
from luthier.core import catalog
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Analysis, LuthierError
from luthier.core.references import References, untuned_copy

STEPS = 3


@dataclass(frozen=True)
class World:
    """One architecture, one tuner and objective, one kind of examples. `settings` are of the model: dropout, say.

    fits     whether the analysis looks at models of this kind
    untuned  whether the untuned model is kept beside
    """

    label: str
    architecture: str
    tuner: str
    objective: str
    examples: tuple[Any, ...]
    task: str = "causal_lm"
    settings: tuple[tuple[str, Any], ...] = ()
    fits: bool = True
    untuned: bool = False

    def loop(self, *callbacks: LoopCallback) -> Loop:
        tuner = catalog.load("tuners", self.tuner).example()
        plain = model_of(self.architecture, **dict(self.settings))
        beside = References(model=untuned_copy(plain, tuner)) if self.untuned else None
        model = tuner.wrap(plain, self.task, 0)
        settings = TrainSettings(max_steps=STEPS, per_device_train_batch_size=2, learning_rate=0.01, warmup_ratio=0.0)
        objective = catalog.load("objectives", self.objective).example()
        return Loop(model, tuner, objective, list(self.examples), settings, PAD, references=beside, callbacks=callbacks)


def worlds(method: Analysis) -> list[World]:
    found = [
        World("every weight of a decoder", "llama", "full", "sft", texts()),
        World("an adapter, with dropout", "gpt2", "lora", "sft", texts(), settings=(("resid_pdrop", 0.1),)),
        World("an encoder-decoder", "t5", "full", "sft", sources_targets(), "seq2seq_lm"),
        World("a classifier", "bert-classifier", "full", "classification", labelled(), "classification"),
    ]
    return [replace(w, fits=not method.tasks or w.task in method.tasks, untuned=method.untuned) for w in found]


fitting = on(lambda world: world.fits)


class _Looks(LoopCallback):
    """The table after every step, and what the look left behind."""

    def __init__(self, method: Analysis, times: int = 1):
        self.method, self.times = method.for_data(vocabulary(), lambda source: []), times
        self.tables: list[list[dict[str, Any]]] = []
        self.traces: list[bool] = []

    def step(self, loop: Loop) -> None:
        before = _state(loop)
        self.tables.append([self.method.look(loop) for _ in range(self.times)])
        self.traces.append(_equal(before, _state(loop)))


def _state(loop: Loop) -> dict[str, Any]:
    named = dict(loop.plain.named_parameters())
    return {
        "weights": {n: p.detach().clone() for n, p in named.items()},
        "moves": {n: p.requires_grad for n, p in named.items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in named.items()},
        "modes": {n: m.training for n, m in loop.plain.named_modules()},
        "random": torch.get_rng_state(),
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


@fitting
def check_plain_values(method: Analysis, world: World) -> None:
    """A table of names and finite values that JSON holds."""
    looks = _Looks(method)
    world.loop(looks).fit()
    require(len(looks.tables) == STEPS, "a look after each step")
    for (table,) in looks.tables:
        require(bool(table) and all(isinstance(k, str) for k in table), "an empty table, or one without names")
        require(json.loads(json.dumps(table)) == table, "values that JSON does not hold")
        numbers = [v for v in table.values() if isinstance(v, float)]
        require(all(map(math.isfinite, numbers)), f"a value is not finite: {table}")


@fitting
def check_no_trace(method: Analysis, world: World) -> None:
    """Weights, what moves, gradients, modes and random state are what they were."""
    looks = _Looks(method)
    world.loop(looks).fit()
    left = [step for step, clean in enumerate(looks.traces, 1) if not clean]
    require(not left, f"a look left something behind after steps {left}")


@fitting
def check_same_run(method: Analysis, world: World) -> None:
    """A run that is looked at ends in the weights of one that is not, bit for bit."""
    looked, alone = world.loop(_Looks(method)), world.loop()
    for loop in (looked, alone):
        loop.fit()
    theirs = dict(alone.plain.named_parameters())
    for name, parameter in looked.plain.named_parameters():
        same(parameter.detach(), theirs[name].detach(), name)


@fitting
def check_repeats(method: Analysis, world: World) -> None:
    """Two looks at the same moment say the same."""
    looks = _Looks(method, times=2)
    world.loop(looks).fit()
    for one, other in looks.tables:
        require(one == other, f"one look says {one}, the next {other}")


@fitting
def check_follows_the_run(method: Analysis, world: World) -> None:
    """It looks at the model of the moment: tables of different steps differ."""
    looks = _Looks(method)
    world.loop(looks).fit()
    require(looks.tables[0] != looks.tables[-1], "the table does not change while the model does")


@when(lambda method: bool(method.tasks))
@on(lambda world: not world.fits)
def check_refuses(method: Analysis, world: World) -> None:
    """A model of a kind that it does not claim to look at is refused in one line."""
    looks = _Looks(method)
    try:
        world.loop(looks).fit()
    except LuthierError as error:
        require("\n" not in str(error), "the error is longer than a line")
        return
    raise CheckFailed(f"{method.name} looked at {world.label}, which it does not claim")
