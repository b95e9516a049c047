"""Rerank: one model reads query and document together, and is to score the right document above its negatives.

    loss = - log  e^s(q, d+) / ( e^s(q, d+) + sum_j e^s(q, d_j) )          s: one output of a task head, n negatives d_j

Query and document are one sequence ("[CLS] q [SEP] d [SEP]" where the tokenizer writes so). Rows may have different numbers
of negatives; their order does not matter. What the query's other rows say is not used: negatives are a row's own.
Start:      log (1 + n) for a head that says nothing.
Cost:       1 + n forwards a row, of query and document together. The softmax is in float32 whatever the model runs in.
Paper:      Ma et al., 2022, "Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information
            Retrieval", arXiv:2208.09847; as the localised contrastive estimation of Gao et al., 2021, arXiv:2101.08751.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer
from luthier.objectives._family import SearchObjective


@dataclass(frozen=True)
class Rerank(SearchObjective):
    paper: ClassVar[str] = "arXiv:2208.09847"
    cards: ClassVar[tuple[int, ...]] = (40,)
    task: ClassVar[str] = "classification"
    row_options: ClassVar[dict[str, Any]] = {"paired": True}

    def scores(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.asked_by is not None
        said = scorer.class_logits(batch)[:, 0]  # (D,)
        said = said.to(torch.promote_types(said.dtype, torch.float32))
        queries = torch.arange(len(batch.rows), device=said.device)
        return said.expand(len(queries), -1), queries[:, None] == batch.asked_by
