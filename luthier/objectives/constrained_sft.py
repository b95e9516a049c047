"""Constrained SFT: learn answers while each token stays near the untuned model, the first tokens nearest.

    x     = log pi(y_n | past) - log rho(y_n | past)                   rho: the untuned model; all (N,)

    loss  = sum_n [ -2 / beta_n (log sigmoid(beta_n x) + log 2) - log rho(y_n | past) ] / N                "ratio"
    loss  = sum_n [ -log pi(y_n | past) + beta_n KL( rho(.|past) || pi(.|past) ) ] / N                     "kl"

    beta_n  `beta` for the first tokens of an answer, one number each, and `later` for those behind them; 0: no constraint
    form    "ratio": the gradient of a token is that of SFT times 2 sigmoid(-beta_n x), so it stops pulling where pi has
            gained about 1 / beta_n;  "kl": the whole distribution is held
An answer is a run of scored tokens that follow one another: every turn of a chat counts anew.
Start:      SFT's loss and, for "ratio" and "kl" alike, its gradient; beta = later = 0 is SFT throughout.
Cost:       a forward pass of the untuned model at every step, as for `tdpo`.
Paper:      Qi et al., 2024, "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", arXiv:2406.05946, section 4
            (defaults: its setting). The KL form is that of common practice, and the plainer of the two.
Departures: the paper's loss is -2/beta log sigmoid(beta x); here a constant is added, which has no gradient, so that the
            loss starts as SFT's and is SFT's where beta is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer, forward_kl, logp_of_both
from luthier.core.method import LuthierError
from luthier.objectives._family import TokenObjective


@dataclass(frozen=True)
class ConstrainedSFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2406.05946"
    cards: ClassVar[tuple[int, ...]] = (41,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel", "exam")
    reference: ClassVar[str] = "model"

    beta: tuple[float, ...] = (0.5, 2.0, 2.0, 2.0, 2.0)
    later: float = 0.1
    form: Literal["ratio", "kl"] = "ratio"

    def __post_init__(self) -> None:
        if min((*self.beta, self.later)) < 0:
            raise LuthierError("objective: beta and later cannot be negative: 0 is no constraint")

    def losses(self, scorer: Scorer, batch: Batch) -> Tensor:
        logp, ref, *kl = scorer.compare(batch, forward_kl if self.form == "kl" else logp_of_both)
        beta = logp.new_tensor([*self.beta, self.later])[batch.place_in_run.clamp(max=len(self.beta))]
        if self.form == "kl":
            return beta * kl[0] - logp
        ref, some = ref.detach(), torch.where(beta > 0, beta, 1.0)
        held = -2 / some * (F.logsigmoid(some * (logp - ref)) + math.log(2)) - ref
        return torch.where(beta > 0, held, -logp)
