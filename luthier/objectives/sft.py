"""SFT: raise the probability of every token that counts.

    loss = - sum_n log pi(y_n | past) / N                  N scored tokens of the whole step, over all micro-batches

Start:      log V for a model that knows nothing.
Paper:      maximum likelihood; as instruction tuning: Ouyang et al., 2022, arXiv:2203.02155, section 3.5.
Departures: none. The mean is over tokens, not over rows, and does not depend on how a batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class SFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2203.02155"
    cards: ClassVar[tuple[int, ...]] = (33,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp
