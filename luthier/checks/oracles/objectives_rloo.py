"""RLOO against a float64 loop over answers, and against trl's RLOOTrainer on the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks.oracles import _rollouts
from luthier.checks.oracles._rollouts import Told
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def _total(objective: Any, examples: Sequence[Any], told: Callable[[Any], Iterator[Told]]) -> tuple[Tensor, float]:
    total, answers = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        asked = list(told(e))
        drifts = [sum(o - r for o, r in zip(a.old, a.ref, strict=True)) for a in asked]
        rewards = [s - objective.beta * d for s, d in zip(e.scores, drifts, strict=True)]
        for k, answer in enumerate(asked):
            others = [r for j, r in enumerate(rewards) if j != k]
            ratio = torch.exp(sum(answer.now) - sum(answer.old))  # type: ignore[arg-type]
            advantage = rewards[k] - sum(others) / len(others)
            total = total + _rollouts.worse(ratio, advantage, objective.epsilon, objective.epsilon)
            answers += 1
    return total, float(answers)


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    return _total(objective, examples, lambda e: _rollouts.told(e, policy))


def start(examples: Sequence[Any], outputs: int) -> float:
    objective = catalog.load("objectives", _NAME).example()
    total, weight = _total(objective, examples, lambda e: _rollouts.at_start(e, outputs))
    return float(total) / weight


def oracle_trl() -> None:
    from trl import RLOOConfig, RLOOTrainer

    plain = catalog.load("objectives", _NAME)()
    for ours in ({}, {"beta": 0.0, "epsilon": 0.1, "epsilon_high": 0.6}):
        objective = replace(plain, **ours)
        _rollouts.against_trl(objective, RLOOTrainer, RLOOConfig, **{**ours, "beta": 0.0})
