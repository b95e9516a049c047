"""Merge: one set of weights as the weighted sum of several of the same shape.

    theta = sum_i w_i theta_i                              theta_i: n checkpoints of one architecture

    weight  w (n,); left out: 1/n each. They are used as they are, not normalised.
Start:      one checkpoint alone is returned unchanged.
Cost:       a piece of a tensor of each checkpoint in memory at a time.
Paper:      Wortsman et al., 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
            without increasing inference time", arXiv:2203.05482, section 2.
Departures: none. Sums are taken in float32 (float64 for float64 weights) and stored in the dtype of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luthier.core.method import Edit
from luthier.edits._family import per_model, weighted_sum


@dataclass(frozen=True)
class Merge(Edit):
    paper: ClassVar[str] = "arXiv:2203.05482"
    cards: ClassVar[tuple[int, ...]] = (33, 34)
    elementwise: ClassVar[bool] = True
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree"})

    weight: float | tuple[float, ...] | None = None

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        n = len(tensors)
        return weighted_sum(tensors, per_model(1 / n if self.weight is None else self.weight, n))
