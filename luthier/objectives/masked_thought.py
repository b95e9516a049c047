"""Masked thought: maximum likelihood of an answer, read with holes in its own past.

    loss = - sum_n log pi(y_n | past with holes) / N         every answer token is predicted, hidden or not
    p(s) = rate min(1, s / (ramp S))                         chance of a hole at step s of S, each token for itself

    rate   the largest p;  ramp: share of the run over which p grows from 0; 0: constant
    kind   what stands in a hole: mask (the tokenizer's mask token; the mean row of the embedding table where it has none),
           random (an ordinary token), drop (not attended to), zero, noise (`alpha`, as NEFTune's), argmax, sample
           or mixture (`keep`) of what the model itself, reading without holes, puts there; as in core/holes.py
    where  answer (tokens that count), or all: the question too, but not the first token
    mask_id, special   taken from the tokenizer by the run where left alone: the mask token, and what is never drawn
Start:      log V for a model that knows nothing.
Cost:       that of SFT; argmax, sample and mixture read each batch twice.
Paper:      Chen et al., 2024, "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning
            Learning of Language Models", arXiv:2403.02178, section 3; further kinds: its public code.
Departures: no token is added for `mask`, so that the model keeps its size and every tuner can use it: the mean row is where
            an added one would begin, and does not move. Random tokens are ordinary ones. The rate follows the run's steps,
            not the calls of a collator. Held-out rows have no holes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.holes import PREDICTED, Filling, Kind, dig, filled
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError
from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class MaskedThought(TokenObjective):
    paper: ClassVar[str] = "arXiv:2403.02178"
    cards: ClassVar[tuple[int, ...]] = (26,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")

    kind: Kind = "mask"
    rate: float = 0.2
    ramp: float = 2 / 3
    where: Literal["answer", "all"] = "answer"
    alpha: float = 5.0
    keep: float = 0.7
    mask_id: int = -1
    special: tuple[int, ...] = ()
    vocabulary: int = -1

    def __post_init__(self) -> None:
        if not (0 <= self.rate <= 1 and 0 <= self.ramp <= 1):
            raise LuthierError(f"objective: rate {self.rate} and ramp {self.ramp} must lie between 0 and 1")
        if self.kind in PREDICTED and self.where != "answer":
            raise LuthierError(f"objective: kind {self.kind} is for tokens that are predicted: set where: answer")

    @classmethod
    def example(cls) -> Self:
        return cls(rate=0.4, ramp=0.0, mask_id=1, special=(0, 1, 2, 3), vocabulary=96)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        mask = tokenizer.mask_token_id if self.mask_id < 0 else self.mask_id
        return replace(
            self,
            mask_id=-1 if mask is None else mask,
            special=self.special or tuple(tokenizer.all_special_ids),
            vocabulary=len(tokenizer) if self.vocabulary < 0 else self.vocabulary,
        )

    def share(self, step: int, total: int) -> float:
        """p at a step; held-out rows come as step -1."""
        if step < 0:
            return 0.0
        return self.rate if self.ramp == 0 else self.rate * min(1.0, step / (self.ramp * total))

    @property
    def filling(self) -> Filling:
        return Filling(self.kind, self.mask_id, self.special, self.vocabulary, self.alpha, self.keep)

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        share, key = self.share(step, total), int(rng.integers(2**62))
        return dig(batch, self.filling, share, key, self.where == "all") if share else batch

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        with filled(scorer, batch, self.filling) as shown:
            return super().compute(scorer, shown)

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp
