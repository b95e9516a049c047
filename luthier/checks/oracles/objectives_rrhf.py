"""RRHF against a float64 loop over pairs of answers, and against plain numbers with its options."""

from __future__ import annotations

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
        for i, a in enumerate(scores):
            for j, b in enumerate(scores):
                if a > b and s[j] > s[i]:
                    total = total + s[j] - s[i]
        return total

    return _groups.summed(loss, examples, policy)


def _value(weight: float) -> Any:
    def value(s: list[float], scores: list[float]) -> float:
        ordered = sorted(range(len(s)), key=lambda i: -scores[i])
        pairs = [(i, j) for at, i in enumerate(ordered) for j in ordered[at + 1 :] if scores[i] != scores[j]]
        return sum(max(0.0, s[j] - s[i]) for i, j in pairs) - weight * s[_groups.best(scores)]

    return value


def start(examples: Sequence[Any], outputs: int) -> float:
    return _groups.mean_start(_value(1.0), examples, outputs)


def oracle_numbers() -> None:
    objective = catalog.load("objectives", _NAME).example()
    for options in ({}, {"sft_weight": 0.0}, {"detached": True}):
        told = replace(objective, **options)
        _groups.by_numbers(told, _value(told.sft_weight), f"loss with {options}")


def oracle_detached() -> None:
    """With worse answers as a yardstick, their tokens get no gradient; a better one's is as before."""
    from luthier.objectives._family import Group

    objective = replace(catalog.load("objectives", _NAME).example(), sft_weight=0.0)
    found = []
    for detached in (False, True):
        s = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
        loss = replace(objective, detached=detached).loss(Group(s, torch.ones(2), torch.tensor([1.0, 0.0])))
        found.append(torch.autograd.grad(loss, s)[0].tolist())
    if found != [[-1.0, 1.0], [-1.0, 0.0]]:
        from luthier.checks._compare import CheckFailed

        raise CheckFailed(f"slopes {found}")
