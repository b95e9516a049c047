"""Replaced token detection: an encoder tells the tokens of a text from those that a generator put in their place.

    loss = mean_{n in M} - log G(x_n | masked x)  +  detection  mean_t - log P(r_t | x')     a row's means, times its tokens
    x'   x with every hidden token replaced by a draw from G;  r_t whether x'_t differs from x_t: a draw that hits is no
         replacement
    P(r_t = 1 | x') = sigma(z_t[mask])       z_t (V,) what the masked-LM head says at t: its row of the mask token, which
                                             predicts nothing, is the detector, so no parameter is added and none thrown away
    M    tokens hidden behind the mask token: each that counts with chance `rate`, one of a row at least

    generator  itself    G is the encoder with its own masked-LM head: it learns from the first term, and the draw has no
                         gradient
               untuned   G is the encoder as it was before the first step, frozen: the second term alone, and at the start
                         G and detector are equal
    detection  weight of telling, in the first line
    mask_id    taken from the tokenizer by the run where left at -1
Start:      log V + detection log 2 for a model that knows nothing (detection log 2 with `untuned`).
Cost:       two forward passes. Of the second one logit a token counts, though the head computes all.
Paper:      Zhong et al., 2023, arXiv:2302.09268; the loss as in Clark et al., 2020, "ELECTRA", arXiv:2003.10555, eq. 1 to 3.
Departures: G is no smaller model of its own, trained beside. `itself` shares all weights, so both terms move them;
            `untuned` is the paper's training in two stages. Every hidden token shows the mask. Gradient-disentangled
            embeddings have no place: with `untuned` no gradient of the detector reaches G at all. The mean over hidden
            tokens is a row's own, so that losses of rows add.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.holes import Filling, Holes, dig
from luthier.core.logprobs import Columns, Scorer
from luthier.core.method import Loss, LuthierError, Objective


@dataclass(frozen=True)
class RTD(Objective):
    paper: ClassVar[str] = "arXiv:2302.09268"
    cards: ClassVar[tuple[int, ...]] = (3,)
    rows: ClassVar[tuple[str, ...]] = ("text",)
    task: ClassVar[str] = "masked_lm"

    rate: float = 0.15
    detection: float = 50.0
    generator: Literal["itself", "untuned"] = "itself"
    mask_id: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise LuthierError(f"objective.rate {self.rate} must lie between 0 and 1")

    @classmethod
    def example(cls) -> Self:
        return cls(rate=0.3, detection=2.0, mask_id=1)

    @property
    def reference(self) -> str:  # type: ignore[override]
        return "model" if self.generator == "untuned" else ""

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same objective with the tokenizer's mask token filled in."""
        mask = tokenizer.mask_token_id if self.mask_id < 0 else self.mask_id
        if mask is None:
            raise LuthierError("this tokenizer has no mask token: set objective.mask_id")
        return replace(self, mask_id=mask)

    def weight(self, batch: Batch) -> float:
        assert batch.source is not None
        return float(len(batch.source))

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        """A fresh draw of tokens behind the mask; every token that counts is judged at its own place."""
        hidden = dig(batch, Filling("mask", self.mask_id), self.rate, int(rng.integers(2**62)), least=1)
        assert hidden.source is not None
        return replace(hidden, source=hidden.source + 1)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.target is not None and batch.owner is not None
        holes = batch.extras["holes"][0].to(batch.ids.device)
        n, owner = self.weight(batch), batch.owner[holes.scored]
        if self.generator == "itself":
            logp, drawn = self._generated(scorer, batch, holes)
        else:
            with scorer.untuned() as generator:
                logp, drawn = self._generated(generator, batch, holes)
        shown = batch.ids.flatten().index_put((holes.at,), drawn).view_as(batch.ids)
        replaced = torch.zeros_like(batch.target, dtype=torch.bool)
        replaced[holes.scored] = drawn != batch.target[holes.scored]
        (said,) = scorer.read(replace(batch, ids=shown), lambda logits, target: (logits[:, self.mask_id],))
        found = F.binary_cross_entropy_with_logits(said, replaced.to(said), reduction="sum") * self.detection
        if self.generator == "itself":
            tokens, hidden = batch.owner.bincount(minlength=batch.answers), owner.bincount(minlength=batch.answers)
            found = found - (logp * (tokens.to(logp) / hidden.clamp(min=1))[owner]).sum()
        right = (said.detach() > 0) == replaced
        figures = {
            "masked_lm": (-logp.detach().sum(), float(len(logp))),
            "detected": (right[replaced].sum().to(said), float(replaced.sum())),
            "kept": (right[~replaced].sum().to(said), float((~replaced).sum())),
        }
        return Loss(found, n, figures)

    def _generated(self, generator: Scorer, batch: Batch, holes: Holes) -> tuple[Tensor, Tensor]:
        """log G (N,) of the hidden tokens, and a token drawn for each."""
        assert batch.target is not None
        own = batch.target[holes.scored]

        def function(logits: Tensor, which: Tensor) -> Columns:
            logp = logits.log_softmax(-1)
            p = logits.detach().double().index_fill(1, holes.at.new_tensor([self.mask_id]), -torch.inf).softmax(-1)
            drawn = (p.cumsum(-1) < holes.u[which, None]).sum(-1).clamp(max=p.shape[-1] - 1)
            return logp.gather(1, own[which, None])[:, 0], drawn.to(logp)

        index = torch.arange(len(own), device=own.device)  # the function is told which hidden tokens it is given
        logp, drawn = generator.read(replace(batch, source=holes.at, target=index), function)
        return logp, drawn.detach().long()
