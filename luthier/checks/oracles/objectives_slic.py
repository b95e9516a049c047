"""SLiC against a float64 loop, and against the hinge of trl's CPOTrainer, which is beta times this one at delta = 1/beta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
_DELTA = 1.0


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    def loss(p: _pairs.Pair) -> Tensor:
        short = objective.delta - (p.chosen - p.rejected)
        return torch.where(short > 0, short, 0 * short) - objective.alpha * p.chosen / p.n_chosen

    return _pairs.summed(loss, examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    """Pairs of unequal lengths have a margin of their own even where the model knows nothing."""
    log_v = math.log(outputs)
    short = [_DELTA - (len(e.answers[1]) - len(e.answers[0])) * log_v for e in examples]
    return sum(max(0.0, x) for x in short) / len(short) + log_v


def oracle_trl() -> None:
    world = _pairs.pair_world(_pairs.even())
    beta = 0.2
    objective = replace(catalog.load("objectives", _NAME).example(), delta=1 / beta)
    wanted = _pairs.trl_cpo(world.examples, world, loss_type="hinge", beta=beta, cpo_alpha=objective.alpha * beta)
    close(beta * _pairs.ours(objective, world.examples, world), wanted, "loss and trl's")
