"""SimPO against a float64 loop, and against trl's CPOTrainer with its `simpo` loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
_GAMMA = 1.0


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    def loss(p: _pairs.Pair) -> Tensor:
        reward = objective.beta * (p.chosen / p.n_chosen - p.rejected / p.n_rejected)
        return _pairs.softplus(objective.gamma - reward)

    return _pairs.summed(loss, examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log1p(math.exp(_GAMMA))


def oracle_trl() -> None:
    world = _pairs.pair_world()
    objective = catalog.load("objectives", _NAME).example()
    wanted = _pairs.trl_cpo(
        world.examples, world, loss_type="simpo", beta=objective.beta, simpo_gamma=objective.gamma, cpo_alpha=0.0
    )
    close(_pairs.ours(objective, world.examples, world), wanted, "loss and trl's")
