"""AFT against a float64 loop over pairs of answers, and against plain numbers under each constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks.oracles import _groups
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    def loss(s: list[Tensor], scores: list[float]) -> Tensor:
        total = torch.ones((), dtype=torch.float64)
        for j, r_j in enumerate(scores):
            better = [i for i, r in enumerate(scores) if r > r_j]
            for i in better:
                boundary = min(float(s[k].detach()) for k in better) - objective.beta
                T = 2 * boundary - float(s[i].detach())
                total = total + torch.exp(s[j] - s[i]) + torch.exp(T - s[j])
        return torch.log(total) - objective.sft_weight * s[_groups.best(scores)]

    return _groups.summed(loss, examples, policy)


def _value(constraint: str, beta: float, weight: float) -> Any:
    def value(s: list[float], scores: list[float]) -> float:
        total = 1.0
        for j, r in enumerate(scores):
            better = [s[i] for i in range(len(s)) if scores[i] > r]
            total += sum(math.exp(s[j] - x) for x in better)
            if constraint == "boundary":
                total += sum(math.exp(2 * (min(better) - beta) - x - s[j]) for x in better)
        return math.log(total) - weight * s[_groups.best(scores)]

    return value


def start(examples: Sequence[Any], outputs: int) -> float:
    return _groups.mean_start(_value("boundary", 0.15, 1.0), examples, outputs)


def oracle_numbers() -> None:
    objective = catalog.load("objectives", _NAME).example()
    for constraint in ("boundary", "detached", "none"):
        for weight in (1.0, 0.0):
            told = replace(objective, constraint=constraint, sft_weight=weight, beta=0.3)
            _groups.by_numbers(told, _value(constraint, 0.3, weight), f"loss under {constraint}")
