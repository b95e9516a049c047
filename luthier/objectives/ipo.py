"""IPO: bring the gain of the chosen answer over the rejected one to a stated margin, and no further.

    loss = ( h - 1 / (2 tau) )^2,    h = (logp_w - ref_w) / n_w - (logp_l - ref_l) / n_l               all (P,), P pairs

    beta       tau: the larger, the smaller the margin and the stronger the pull towards the reference
    reduction  mean: n are the answers' tokens, h is in nats a token;  sum: n = 1, as the equation is written. A tau that
               suits one does not suit the other: with sums, tau = 0.1 asks for 5 nats on the whole answer
Start:      policy = reference gives exactly 1 / (4 tau^2).
Paper:      Azar et al., 2023, arXiv:2310.12036, eq. 17.
Departures: none with `sum`. The default `mean` is not in the paper; it is what trl computes, whose authors had it
            confirmed as the form behind the paper's figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class IPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2310.12036"
    cards: ClassVar[tuple[int, ...]] = (14,)

    beta: float = 0.1
    reduction: Literal["mean", "sum"] = "mean"

    def loss(self, pair: PairLogp) -> Tensor:
        won, lost = pair.gains
        if self.reduction == "mean":
            won, lost = won / pair.chosen_tokens, lost / pair.rejected_tokens
        return (won - lost - 1 / (2 * self.beta)) ** 2
