"""Contrastive: a query is to be nearer to the document that answers it than to the documents of its group.

    loss = - log  e^(s(q, d+) / tau) / sum_{d in C(q)} e^(s(q, d) / tau)
    C(q)  d+, the hard negatives of q, and all documents of the other queries of its group, without those that answer q:
          a document whose text is that of d+, or of the right document of another row with the same query

    q, d         one vector each from one model without a head, `pooling` cls, mean or last (core/embedding.py)
    s            dot, or cosine;  temperature tau, by default 1 (dot) or 0.05 (cosine)
    group        queries that share their documents
Negatives of a whole batch would make a loss that depends on how a step is split: one batch of 8 has seven foreign documents
a query, two of 4 have three. Here they are shared within a group, and a group is never split: its rows are drawn together,
by seed and epoch, and a micro-batch holds whole groups (per_device_train_batch_size is a multiple of `group`; say the same
number for negatives of the whole micro-batch). Losses then add over micro-batches and processes, as everywhere. Where the
rows leave a smaller group over, it has fewer negatives.
Start:      log |C(q)| for a model that gives every text the same vector.
Cost:       one forward a text, and Q D scores; the softmax is in float32 whatever the model runs in.
Paper:      Ma et al., 2022, "Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information
            Retrieval", arXiv:2208.09847; the loss as in Karpukhin et al., 2020, arXiv:2004.04906, eq. 2.
Departures: groups, as above. Documents that answer q do not count as its negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.embedding import Pooling, Similarity, similarity
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError
from luthier.objectives._family import SearchObjective, first_documents


@dataclass(frozen=True)
class Contrastive(SearchObjective):
    paper: ClassVar[str] = "arXiv:2208.09847"
    cards: ClassVar[tuple[int, ...]] = (40,)
    task: ClassVar[str] = "embedding"

    group: int = 8
    pooling: Pooling = "mean"
    similarity: Similarity = "dot"
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.group < 1 or (self.temperature is not None and self.temperature <= 0):
            raise LuthierError("objective: group must be at least 1, and temperature above 0")

    @classmethod
    def example(cls) -> Self:
        return cls(group=2, temperature=8.0)  # dot products of tiny models with large weights are large

    @property
    def tau(self) -> float:
        return self.temperature or {"dot": 1.0, "cosine": 0.05}[self.similarity]

    def scores(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        vectors = scorer.embeddings(batch, self.pooling)  # (Q + D, width)
        Q = len(batch.rows)
        scores = similarity(vectors[:Q], vectors[Q:], self.similarity) / self.tau
        return scores, choices(batch, self.group)


def choices(batch: Batch, group: int) -> Tensor:
    """(Q, D): whether document d is in C(q)."""
    assert batch.asked_by is not None and batch.keys is not None and batch.query_keys is not None
    Q = len(batch.rows)
    queries, right = torch.arange(Q, device=batch.ids.device), first_documents(batch)
    together = (queries // group)[:, None] == (batch.asked_by // group)  # (Q, D)
    same_query = batch.query_keys[:, None] == batch.query_keys  # (Q, Q)
    is_right_of = batch.keys[right][:, None] == batch.keys  # (Q, D)
    answers = (same_query.float() @ is_right_of.float()) > 0
    own = torch.zeros_like(together).scatter_(1, right[:, None], True)
    return together & (~answers | own)
