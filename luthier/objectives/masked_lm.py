"""Masked language modelling: predict tokens that were hidden from an encoder.

    loss = - sum_{n in M} log pi(x_n | corrupted x) / |M|  M: each token that counts, with probability `rate`

    rate          share of tokens predicted; of those 80 % become the mask token, 10 % a random token, 10 % stay
    mask_id, vocabulary   taken from the tokenizer by the run where left at -1
Start:      log V for a model that knows nothing.
Paper:      Devlin et al., 2019, arXiv:1810.04805, section 3.1.
Departures: masks are drawn anew at every visit (the paper's code drew ten versions once). A row in which no token was
            drawn hides one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.method import LuthierError
from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class MaskedLM(TokenObjective):
    paper: ClassVar[str] = "arXiv:1810.04805"
    cards: ClassVar[tuple[int, ...]] = (3,)
    rows: ClassVar[tuple[str, ...]] = ("text",)
    task: ClassVar[str] = "masked_lm"

    rate: float = 0.15
    mask_id: int = -1
    vocabulary: int = -1

    @classmethod
    def example(cls) -> Self:
        return cls(rate=0.3, mask_id=1, vocabulary=64)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same objective with the tokenizer's mask token and vocabulary size filled in."""
        mask = tokenizer.mask_token_id if self.mask_id < 0 else self.mask_id
        if mask is None:
            raise LuthierError("this tokenizer has no mask token: set objective.mask_id")
        return replace(self, mask_id=mask, vocabulary=len(tokenizer) if self.vocabulary < 0 else self.vocabulary)

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        """Hide a fresh draw of tokens: scored positions then predict themselves. Each row draws for itself."""
        assert batch.source is not None and batch.target is not None and batch.owner is not None
        position = batch.source + 1  # the scored tokens themselves: source is the place before them
        key = int(rng.integers(2**62))
        counts = batch.owner.bincount(minlength=batch.answers).tolist()
        draws = [self._draw(key, row, n) for row, n in zip(batch.rows.tolist(), counts, strict=True)]
        chosen, fate, noise = (torch.from_numpy(np.concatenate(part)) for part in zip(*draws))
        at, own, fate, noise = position[chosen], batch.target[chosen], fate[chosen], noise[chosen]
        new = torch.where(fate < 0.8, torch.full_like(own, self.mask_id), torch.where(fate < 0.9, noise, own))
        ids = batch.ids.flatten().clone()
        ids[at] = new
        return replace(batch, ids=ids.view_as(batch.ids), source=at, target=own, owner=batch.owner[chosen])

    def _draw(self, key: int, row: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the n tokens of a data row: which are predicted, what becomes of each, and a random token."""
        rng = np.random.default_rng([key, row])
        chosen = rng.random(n) < self.rate
        if n and not chosen.any():
            chosen[rng.integers(n)] = True
        return chosen, rng.random(n), rng.integers(0, self.vocabulary, n)

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp
