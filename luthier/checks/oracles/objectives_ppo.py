"""PPO against a float64 loop over tokens in which every advantage is the sum that defines it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks.oracles import _rollouts
from luthier.checks.oracles._rollouts import Told
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
Value = Callable[[Any, Sequence[int]], list[Tensor]]


def _total(
    objective: Any, examples: Sequence[Any], told: Callable[[Any], Iterator[Told]], value: Value
) -> tuple[Tensor, float]:
    asked = [(e, list(told(e))) for e in examples]
    found: list[list[float]] = []
    for e, answers in asked:
        for s, a in zip(e.scores, answers, strict=True):
            T = len(a.now)
            r = [-objective.kappa * (o - f) for o, f in zip(a.old, a.ref, strict=True)]
            r[-1] += max(-objective.reward_clip, min(objective.reward_clip, s))
            d = [r[t] + objective.gamma * (a.value[t + 1] if t + 1 < T else 0.0) - a.value[t] for t in range(T)]
            found.append(
                [sum((objective.gamma * objective.lam) ** (j - t) * d[j] for j in range(t, T)) for t in range(T)]
            )
    everything = [x for part in found for x in part]
    mean = sum(everything) / len(everything)
    sd = (sum((x - mean) ** 2 for x in everything) / len(everything)) ** 0.5
    total, n = torch.zeros((), dtype=torch.float64), 0
    rows = iter(found)
    for e, answers in asked:
        for tokens, a in zip(e.answers, answers, strict=True):
            for now, old, V, v, A in zip(a.now, a.old, a.value, value(e, tokens), next(rows), strict=True):
                wanted = A + V
                near = torch.clamp(v, V - objective.epsilon_value, V + objective.epsilon_value)
                miss = torch.maximum((v - wanted) ** 2, (near - wanted) ** 2) / 2
                scaled = (A - mean) / (sd + 1e-8)
                loss = _rollouts.worse(torch.exp(now - old), scaled, objective.epsilon, objective.epsilon)
                total, n = total + loss + objective.vf_coef * miss, n + 1
    return total, float(n)


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    def value(e: Any, answer: Sequence[int]) -> list[Tensor]:
        ids = torch.tensor([[*e.prompt, *answer]])
        states = policy.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        at = range(len(e.prompt) - 1, len(e.prompt) + len(answer) - 1)
        return [policy.model.own_head(states[t])[0] for t in at]

    return _total(objective, examples, lambda e: _rollouts.told(e, policy), value)


def start(examples: Sequence[Any], outputs: int) -> float:
    """Values begin as 0."""
    objective = catalog.load("objectives", _NAME).example()

    def zero(e: Any, answer: Sequence[int]) -> list[Tensor]:
        return [torch.zeros((), dtype=torch.float64)] * len(answer)

    total, weight = _total(objective, examples, lambda e: _rollouts.at_start(e, outputs), zero)
    return float(total) / weight
