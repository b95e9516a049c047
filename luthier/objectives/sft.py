"""SFT: raise the probability of every token that counts.

    loss = - sum_n [ (1 - s) log pi(y_n | past) + s mean_v log pi(v | past) ] / N
                                                           N scored tokens of the whole step, over all micro-batches

    label_smoothing  s, the share of the target that is spread over all V tokens of the vocabulary; 0: none
Start:      log V for a model that knows nothing.
Paper:      maximum likelihood; as instruction tuning: Ouyang et al., 2022, arXiv:2203.02155, section 3.5; smoothing:
            Szegedy et al., 2016, arXiv:1512.00567, section 7.
Departures: none. The mean is over tokens, not over rows, and does not depend on how a batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.method import LuthierError
from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class SFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2203.02155"
    cards: ClassVar[tuple[int, ...]] = (33,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel", "exam")

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise LuthierError(f"objective: label_smoothing {self.label_smoothing} must lie between 0 and 1")

    @property
    def needs_mean(self) -> bool:
        return self.label_smoothing > 0

    def loss(self, tokens: TokenLogp) -> Tensor:
        if tokens.mean is None:
            return -tokens.logp
        return -(1 - self.label_smoothing) * tokens.logp - self.label_smoothing * tokens.mean
