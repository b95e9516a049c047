"""Sentence contrast: a sentence read twice under dropout is to be nearer to itself than to the other sentences.

    loss_i = - log  e^(cos(h_i, h_i') / tau) / sum_{j in C(i)} e^(cos(h_i, h_j') / tau)
    h, h'  (D,) vector of the final states of a sentence, `pooling` cls, mean or last (core/embedding.py), under two draws
    C(i)   i and the other sentences of its group, without those of the same text

    dropout   share of the numbers of an input embedding that a draw puts to zero: by data row and place, so that no split
              of a step changes it, and in models without dropout as well. That of the model itself comes on top
    group     sentences that are told from one another; a group is never split (per_device_train_batch_size is a multiple)
    temperature  tau
    task      embedding (a model without a head), or masked_lm, to stand in a mixture with objectives of that head
Start:      log |C(i)| for a model that gives every sentence the same vector.
Cost:       two forward passes of the body.
Paper:      Zhong et al., 2023, arXiv:2302.09268; the loss as in Gao et al., 2021, "SimCSE", arXiv:2104.08821, eq. 4.
Departures: negatives of a group, not of the whole batch over all devices. No layer of its own for training alone. Without
            any dropout both draws are equal, and the loss only spreads the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.embedding import Pooling, similarity
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError, Objective
from luthier.core.noise import changed_embeddings, kept_numbers


@dataclass(frozen=True)
class SentenceContrast(Objective):
    paper: ClassVar[str] = "arXiv:2302.09268"
    cards: ClassVar[tuple[int, ...]] = (3,)
    rows: ClassVar[tuple[str, ...]] = ("text",)

    group: int = 8
    pooling: Pooling = "mean"
    temperature: float = 0.05
    dropout: float = 0.1
    task: Literal["embedding", "masked_lm"] = "embedding"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.group < 1 or self.temperature <= 0 or not 0 <= self.dropout < 1:
            raise LuthierError("objective: group must be at least 1, temperature above 0, dropout in [0, 1)")

    @classmethod
    def example(cls) -> Self:
        return cls(group=2, temperature=0.5)

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows))

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        keys = [int(k) for k in rng.integers(2**62, size=2)]
        return replace(batch, extras={**batch.extras, "draws": keys})

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        if len(batch.rows) != len(batch.ids):
            raise LuthierError(
                "objective sentence_contrast takes a sentence a row, and all of them: set train.packing: false"
            )
        first, second = (self._vectors(scorer, batch, key) for key in batch.extras["draws"])
        scores = similarity(first, second, "cosine") / self.temperature
        scores = scores.masked_fill(~choices(batch, self.group), -torch.inf)
        losses = scores.logsumexp(1) - scores.diagonal()
        right = scores.detach().argmax(1) == torch.arange(len(scores), device=scores.device)
        n = self.weight(batch)
        return Loss(losses.sum(), n, {"accuracy": (right.to(losses).sum(), n)})

    def _vectors(self, scorer: Scorer, batch: Batch, key: int) -> Tensor:
        def change(embedded: Tensor) -> Tensor:
            kept = kept_numbers(batch, self.dropout, key, embedded.shape[-1], embedded.device)
            return embedded * kept.to(embedded.dtype) / (1 - self.dropout)

        with changed_embeddings(scorer.plain, batch.ids, change):
            return scorer.embeddings(batch, self.pooling)


def choices(batch: Batch, group: int) -> Tensor:
    """(B, B): whether j is in C(i)."""
    number = torch.arange(len(batch.ids), device=batch.ids.device)
    together = number[:, None] // group == number // group
    ids = batch.ids.where(batch.mask, -1)
    alike = (ids[:, None] == ids).all(-1)
    return together & (~alike | (number[:, None] == number))
