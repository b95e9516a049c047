"""CPO against a float64 loop, and against trl's CPOTrainer where chosen answers are equally long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
_BETA = 0.1


def _loss(beta: float, alpha: float, p: _pairs.Pair) -> Tensor:
    return _pairs.softplus(-beta * (p.chosen - p.rejected)) - alpha * p.chosen / p.n_chosen


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    return _pairs.summed(lambda p: _loss(objective.beta, objective.alpha, p), examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    """Pairs of unequal lengths have log-odds of their own even where the model knows nothing."""
    log_v = math.log(outputs)
    odds = [_BETA * (len(e.answers[1]) - len(e.answers[0])) * log_v for e in examples]
    return sum(math.log1p(math.exp(-x)) for x in odds) / len(odds) + log_v


def oracle_trl() -> None:
    world = _pairs.pair_world(_pairs.even())
    objective = catalog.load("objectives", _NAME).example()
    wanted = _pairs.trl_cpo(world.examples, world, loss_type="sigmoid", beta=objective.beta, cpo_alpha=objective.alpha)
    close(_pairs.ours(objective, world.examples, world), wanted, "loss and trl's")
