"""Groups of answers asked one by one, and the same losses from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import groups
from luthier.checks.objectives import Plain, World
from luthier.core.batch import GroupExample
from luthier.core.logprobs import Scorer


def scores_of(e: GroupExample, policy: Any) -> list[Tensor]:
    """Log-probability a token of each answer."""
    return [policy.answer_logp(e.prompt, a) / len(a) for a in e.answers]


def summed(
    loss: Callable[[list[Tensor], list[float]], Tensor], examples: Sequence[Any], policy: Any
) -> tuple[Tensor, float]:
    """The sum of a loss of (s, scores) over the groups, and their number."""
    total = torch.stack([loss(scores_of(e, policy), e.scores) for e in examples]).sum()
    return total, float(len(examples))


def best(scores: Sequence[float]) -> int:
    return list(scores).index(max(scores))


def by_numbers(objective: Any, value: Callable[[list[float], list[float]], float], what: str) -> None:
    """The method's mean loss against `value(s, scores)` in Python floats; pairs and ragged groups."""
    for answers in (2, 4):
        world = World("groups", "gpt2", groups(6, answers))
        model = world.model().double()
        loss = objective.compute(Scorer(model), world._collate(list(world.examples), "right"))
        with torch.no_grad():
            plain = Plain(model)
            wanted = [value([float(s) for s in scores_of(e, plain)], e.scores) for e in world.examples]
        found = (loss.sum / loss.weight).detach()
        close(found, torch.tensor(float(np.mean(wanted)), dtype=torch.float64), f"{what}, groups of up to {answers}")


def mean_start(value: Callable[[list[float], list[float]], float], examples: Sequence[Any], outputs: int) -> float:
    """`value` for a model that knows nothing."""
    s = -math.log(outputs)
    return float(np.mean([value([s] * len(e.answers), e.scores) for e in examples]))
