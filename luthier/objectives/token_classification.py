"""Token classification: cross-entropy on the class of single tokens (names in a text, parts of speech, right and wrong steps).

    loss = - w_c log softmax(z_n)_c                        z (N, C) at the N tokens that have a class c

    class_weights    w (C,), or none
    label_smoothing  s, the share of the target that is spread over all C classes; 0: none
Start:      log C for a head that says nothing.
Paper:      cross-entropy. Of steps: Lightman et al., 2023, "Let's Verify Step by Step", arXiv:2305.20050, section 2.6.
Departures: none. Steps are judged by a head of two classes, not by two words of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, Objective


@dataclass(frozen=True)
class TokenClassification(Objective):
    paper: ClassVar[str] = "arXiv:2305.20050"
    cards: ClassVar[tuple[int, ...]] = (33,)
    rows: ClassVar[tuple[str, ...]] = ("tagged", "stepwise")
    task: ClassVar[str] = "token_classification"

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def weight(self, batch: Batch) -> float:
        assert batch.target is not None
        return float(len(batch.target))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.target is not None
        z = scorer.tag_logits(batch)  # (N, C)
        z = z if z.element_size() > 4 else z.float()
        weights = None if self.class_weights is None else z.new_tensor(self.class_weights)
        losses = F.cross_entropy(
            z, batch.target, weight=weights, reduction="none", label_smoothing=self.label_smoothing
        )
        right = z.detach().argmax(-1).eq(batch.target).to(losses).sum()
        return Loss(losses.sum(), self.weight(batch), {"accuracy": (right, self.weight(batch))})
