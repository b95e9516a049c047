"""Merge: one set of weights as the weighted sum of several of the same shape.

    theta = sum_i w_i theta_i                              theta_i: n checkpoints of one architecture

    weights  w (n,); left out: 1/n each. They are used as they are, not renormalised.
Start:      one checkpoint alone is returned unchanged.
Cost:       one tensor of each checkpoint in memory at a time.
Paper:      Wortsman et al., 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
            without increasing inference time", arXiv:2203.05482, section 2.
Departures: none. Sums are taken in float32 (float64 for float64 weights) and stored in the dtype of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.method import Edit, LuthierError


@dataclass(frozen=True)
class Merge(Edit):
    paper: ClassVar[str] = "arXiv:2203.05482"
    cards: ClassVar[tuple[int, ...]] = (33, 34)

    weights: tuple[float, ...] | None = None

    def apply(self, states: Sequence[dict[str, Tensor]], model: nn.Module | None = None) -> dict[str, Tensor]:
        weights = self.weights or (1 / len(states),) * len(states)
        if len(weights) != len(states):
            raise LuthierError(f"edit.weights has {len(weights)} numbers for {len(states)} checkpoints")
        for state in states[1:]:
            _same_shape(states[0], state)
        return {name: self._one([s[name] for s in states], weights) for name in states[0]}

    @staticmethod
    def _one(tensors: list[Tensor], weights: Sequence[float]) -> Tensor:
        first = tensors[0]
        if not first.is_floating_point() or (len(tensors) == 1 and weights[0] == 1):
            return first.clone()
        wide = torch.promote_types(first.dtype, torch.float32)
        total = torch.zeros_like(first, dtype=wide)
        for tensor, weight in zip(tensors, weights, strict=True):
            total.add_(tensor.to(wide), alpha=weight)
        return total.to(first.dtype)


def _same_shape(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in sorted(a.keys() ^ b.keys()):
        raise LuthierError(f"these checkpoints are not of one architecture: '{name}' is in one of them only")
    for name, tensor in a.items():
        if tensor.shape != b[name].shape:
            raise LuthierError(
                f"'{name}' has shape {tuple(tensor.shape)} in one checkpoint and {tuple(b[name].shape)} in another"
            )
