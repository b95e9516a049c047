"""PRO against a float64 loop over ranks, and against plain numbers with its options."""

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
        total = -objective.sft_weight * s[_groups.best(scores)]
        for k, r_k in enumerate(scores):
            worse = [j for j, r in enumerate(scores) if r < r_k]
            if not worse:
                continue
            c = {j: r_k - scores[j] if objective.sharpen else 1.0 for j in worse}
            own = torch.exp(s[k] * max(c.values()))
            total = total - torch.log(own / (own + sum(torch.exp(s[j] * c[j]) for j in worse)))
        return total

    return _groups.summed(loss, examples, policy)


def _value(weight: float, sharpen: bool) -> Any:
    def value(s: list[float], scores: list[float]) -> float:
        total = -weight * s[_groups.best(scores)]
        for k in range(len(s)):
            gaps = [(s[j], scores[k] - scores[j] if sharpen else 1.0) for j in range(len(s)) if scores[j] < scores[k]]
            if gaps:
                own = s[k] * max(c for _, c in gaps)
                total += math.log1p(sum(math.exp(x * c - own) for x, c in gaps))
        return total

    return value


def start(examples: Sequence[Any], outputs: int) -> float:
    return _groups.mean_start(_value(0.05, True), examples, outputs)


def oracle_numbers() -> None:
    objective = catalog.load("objectives", _NAME).example()
    for options in ({}, {"sharpen": False, "sft_weight": 0.0}, {"detached": True}):
        told = replace(objective, **options)
        _groups.by_numbers(told, _value(told.sft_weight, told.sharpen), f"loss with {options}")
