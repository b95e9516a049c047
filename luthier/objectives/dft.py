"""DFT: maximum likelihood in which each token's loss counts by the probability that it has already.

    loss = - sum_n sg(p_n) log p_n / N,    p_n = pi(y_n | past)         N scored tokens of the whole step; sg: no gradient

Start:      (log V) / V for a model that knows nothing.
Paper:      Wu et al., 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward
            Rectification", arXiv:2508.05629.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class DFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2508.05629"
    cards: ClassVar[tuple[int, ...]] = (64,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp.exp().detach() * tokens.logp
