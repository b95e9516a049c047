"""ORPO against a float64 loop, and against trl's ORPOTrainer where it imitates the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
_LAMBDA = 0.1


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    def odds(logp: Tensor) -> Tensor:
        p = torch.exp(logp)
        return p / (1 - p)

    def loss(p: _pairs.Pair) -> Tensor:
        won, lost = p.chosen / p.n_chosen, p.rejected / p.n_rejected
        ratio = odds(won) / odds(lost)
        return -won - objective.beta * torch.log(ratio / (1 + ratio))

    return _pairs.summed(loss, examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs) + _LAMBDA * math.log(2)


def oracle_trl() -> None:
    """Prompts of one token, of which nothing can be imitated, and chosen answers of equal length."""

    def trainer() -> tuple[Any, Any]:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig

    world = _pairs.pair_world(_pairs.even(prompt=1))
    objective = catalog.load("objectives", _NAME).example()
    wanted, _ = _pairs.trl_reference_free(trainer, world.examples, world, beta=objective.beta)
    close(_pairs.ours(objective, world.examples, world), wanted, "loss and trl's")
