"""GRPO against a float64 loop over tokens, and against trl's GRPOTrainer on the same answers."""

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
    low, high = objective.epsilon, objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
    total, tokens, answers = torch.zeros((), dtype=torch.float64), 0, 0
    for e in examples:
        mean, sd = sum(e.scores) / len(e.scores), _rollouts.spread(e.scores)
        for s, answer in zip(e.scores, told(e), strict=True):
            of_answer = torch.zeros((), dtype=torch.float64)
            for now, old, ref in zip(answer.now, answer.old, answer.ref, strict=True):
                ratio = torch.exp(now - old)
                loss = _rollouts.worse(ratio, (s - mean) / (sd + 1e-4), low, high)
                if objective.beta:
                    kl = torch.exp(ref - now) - 1 - (ref - now)
                    loss = loss + objective.beta * kl * (ratio if objective.use_bias_correction_kl else 1.0)
                of_answer = of_answer + loss
            total = total + (of_answer / len(answer.now) if objective.loss_type == "grpo" else of_answer)
            tokens, answers = tokens + len(answer.now), answers + 1
    return total, float(answers if objective.loss_type == "grpo" else tokens)


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    return _total(objective, examples, lambda e: _rollouts.told(e, policy))


def start(examples: Sequence[Any], outputs: int) -> float:
    objective = catalog.load("objectives", _NAME).example()
    total, weight = _total(objective, examples, lambda e: _rollouts.at_start(e, outputs))
    return float(total) / weight


def oracle_trl() -> None:
    from trl import GRPOConfig, GRPOTrainer

    plain = catalog.load("objectives", _NAME)()
    for ours in (
        {},
        {"loss_type": "grpo", "beta": 0.3},
        {"epsilon": 0.1, "epsilon_high": 0.4, "beta": 0.1, "use_bias_correction_kl": False},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ):
        objective = replace(plain, **ours)
        settings = {"loss_type": objective.loss_type, **ours, "beta": 0.0}
        _rollouts.against_trl(objective, GRPOTrainer, GRPOConfig, **settings)
