"""DPO against a float64 loop, and against trl's loss where trl is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """log(1 + exp(-beta * margin)) of each pair; their number."""
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        chosen, rejected = e.answers
        won = policy.answer_logp(e.prompt, chosen) - reference.answer_logp(e.prompt, chosen).detach()
        lost = policy.answer_logp(e.prompt, rejected) - reference.answer_logp(e.prompt, rejected).detach()
        total = total + torch.log1p(torch.exp(-objective.beta * (won - lost)))
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2)
