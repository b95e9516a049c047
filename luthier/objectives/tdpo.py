"""TDPO: DPO in which each token's whole distribution is held near the reference's, by a forward KL of either answer.

    D    = sum_t KL( rho(.|s_t) || pi(.|s_t) )              over the answer's tokens, the whole vocabulary; rho first
    u    = (logp_w - ref_w) - (logp_l - ref_l)                                                      all (P,), P pairs

    loss = -log sigmoid( beta * [ u - (D_l - D_w) ] )                          tdpo1
    loss = -log sigmoid( beta * [ u - alpha * (D_l - sg(D_w)) ] )              tdpo2: no gradient through D_w

    beta   strength of the pull towards the reference
    alpha  weight of the sequential KL (tdpo2 alone)
tdpo1 raises D_w while it falls, as the margin holds + D_w; tdpo2 does not.
Start:      policy = reference gives exactly log 2, and the gradient of DPO: there the KL has none.
Cost:       a forward pass of the reference at every step: the model with its adapter off, or a frozen copy where all of it
            moves. Its distribution is needed whole, so stored log-probabilities do not do; logits of both models exist in
            chunks of positions alone.
Paper:      Zeng et al., 2024, arXiv:2404.11999, section 4.
Departures: none. The public README's command for tdpo2 trains tdpo1, by its default configuration; here the variant is
            named. Dropout in the policy makes D > 0 before the first step: switch it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class TDPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2404.11999"
    cards: ClassVar[tuple[int, ...]] = (68,)
    reference: ClassVar[str] = "model"

    variant: Literal["tdpo1", "tdpo2"] = "tdpo2"
    beta: float = 0.1
    alpha: float = 0.5

    def loss(self, pair: PairLogp) -> Tensor:
        (won, lost), (D_w, D_l) = pair.gains, pair.kl
        if self.variant == "tdpo1":
            return -F.logsigmoid(self.beta * (won - lost - (D_l - D_w)))
        return -F.logsigmoid(self.beta * (won - lost - self.alpha * (D_l - D_w.detach())))
