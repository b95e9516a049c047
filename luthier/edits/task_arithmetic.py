"""Task arithmetic: what tuning added for several tasks, added up on one base.

    theta = theta_0 + lambda sum_i w_i (theta_i - theta_0)      theta_i: n tuned models; theta_0: their base, given last

    weight     w, one number or one for each model; negative: the task is taken away
    lambda     scale of the sum;   normalize  weights are divided by their sum
Start:      one model by weight 1 and lambda 1 is that model, to the last bit; lambda 0 is the base.
Cost:       a piece of a tensor of each checkpoint in memory at a time.
Paper:      Ilharco et al., 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089, section 2.
Departures: the sum is taken as (1 - lambda sum_i w_i) theta_0 + lambda sum_i w_i theta_i, which rounds once less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luthier.edits._family import TaskVectors, weighted_sum


@dataclass(frozen=True)
class TaskArithmetic(TaskVectors):
    paper: ClassVar[str] = "arXiv:2212.04089"
    cards: ClassVar[tuple[int, ...]] = (33,)

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        by = [self.lambda_ * w for w in self.shares(len(tensors) - 1)]
        return weighted_sum(tensors, [*by, 1 - sum(by)])
