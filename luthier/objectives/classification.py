"""Classification: cross-entropy on a task head, one class or several labels at once.

    loss = - w_c log softmax(z)_c                          z (B, C), one class c a row
    loss = - sum_l [ v_l y_l log sigma(z_l) + (1 - y_l) log(1 - sigma(z_l)) ] / L      several labels y (B, L)

    class_weights  w (C,), or none
    focal          gamma: the loss of a row is scaled by (1 - p_c)^gamma; 0 is cross-entropy
    pos_weight     v (L,), none, or "frequency": v_l = max_j count_j / count_l over the training rows
    pos_weight_cap the largest v_l that "frequency" gives, or none: a label seen once would rule the loss
Start:      log C (log 2 for several labels) for a head that says nothing.
Paper:      cross-entropy; focal form: Lin et al., 2017, arXiv:1708.02002, eq. 4; `pos_weight` by frequency: Buchner et
            al., 2023, "Prompt Tuned Embedding Classification for Multi-Label Industry Sector Allocation",
            arXiv:2309.12075.
Departures: none. A label that never occurs counts as seen once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Example
from luthier.core.method import LuthierError
from luthier.objectives._family import HeadObjective


@dataclass(frozen=True)
class Classification(HeadObjective):
    paper: ClassVar[str] = "arXiv:1708.02002"
    cards: ClassVar[tuple[int, ...]] = (24, 33, 46)
    problems: ClassVar[tuple[str, ...]] = ("single_label_classification", "multi_label_classification")

    class_weights: tuple[float, ...] | None = None
    focal: float = 0.0
    pos_weight: tuple[float, ...] | Literal["frequency"] | None = None
    pos_weight_cap: float | None = None

    def for_examples(self, examples: Sequence[Example]) -> Self:
        if self.pos_weight != "frequency":
            return self
        labels = [getattr(e, "label", None) for e in examples]
        if not all(isinstance(row, list) for row in labels):
            raise LuthierError(
                "objective.pos_weight is for several labels at once; these rows have one: use class_weights"
            )
        counts = torch.tensor(labels, dtype=torch.float64).sum(0).clamp(min=1)  # (L,)
        weights = counts.max() / counts
        if self.pos_weight_cap is not None:
            weights = weights.clamp(max=self.pos_weight_cap)
        return replace(self, pos_weight=tuple(weights.tolist()))

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        if label.ndim == 2:
            if self.pos_weight == "frequency":
                raise LuthierError("objective.pos_weight 'frequency' needs the training rows: call for_examples first")
            weight = None if self.pos_weight is None else outputs.new_tensor(self.pos_weight)
            losses = F.binary_cross_entropy_with_logits(
                outputs, label.to(outputs), reduction="none", pos_weight=weight
            )  # (B, L)
            return losses.mean(1)
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
