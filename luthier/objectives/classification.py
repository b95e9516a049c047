"""Classification: cross-entropy on a task head, one class or several labels at once.

    loss = - w_c log softmax(z)_c                          z (B, C), one class c a row
    loss = - sum_l [ y_l log sigma(z_l) + (1 - y_l) log(1 - sigma(z_l)) ] / L      several labels y (B, L)

    class_weights  w (C,), or none
    focal          gamma: the loss of a row is scaled by (1 - p_c)^gamma; 0 is cross-entropy
Start:      log C (log 2 for several labels) for a head that says nothing.
Paper:      cross-entropy; focal form: Lin et al., 2017, arXiv:1708.02002, eq. 4.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import HeadObjective


@dataclass(frozen=True)
class Classification(HeadObjective):
    paper: ClassVar[str] = "arXiv:1708.02002"
    cards: ClassVar[tuple[int, ...]] = (33, 46)
    problems: ClassVar[tuple[str, ...]] = ("single_label_classification", "multi_label_classification")

    class_weights: tuple[float, ...] | None = None
    focal: float = 0.0

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        if label.ndim == 2:
            return F.binary_cross_entropy_with_logits(outputs, label.to(outputs), reduction="none").mean(1)
        weights = None if self.class_weights is None else outputs.new_tensor(self.class_weights)
        loss = F.cross_entropy(outputs, label.long(), weight=weights, reduction="none")
        if self.focal:
            p = torch.softmax(outputs, -1).gather(1, label.long()[:, None])[:, 0]
            loss = loss * (1 - p) ** self.focal
        return loss

    def figures(self, outputs: Tensor, label: Tensor) -> dict[str, tuple[Tensor, float]]:
        if label.ndim == 2:
            right = ((outputs > 0) == (label > 0.5)).all(1)
        else:
            right = outputs.argmax(-1) == label
        return {"accuracy": (right.float().sum(), float(len(label)))}
