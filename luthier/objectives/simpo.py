"""SimPO: the chosen answer's log-probability a token above the rejected one's, by a margin, without a reference.

    loss = -log sigmoid( beta * [ logp_w / n_w - logp_l / n_l ] - gamma )                              all (P,), P pairs

    n      tokens of an answer
    beta   scale of the reward beta logp / n
    gamma  margin that the reward of the chosen answer must have
Start:      a model that knows nothing gives log(1 + exp(gamma)).
Paper:      Meng et al., 2024, arXiv:2405.14734, eq. 6.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class SimPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2405.14734"
    cards: ClassVar[tuple[int, ...]] = (14,)
    reference: ClassVar[str] = ""

    beta: float = 2.0
    gamma: float = 1.0

    def loss(self, pair: PairLogp) -> Tensor:
        won, lost = pair.means
        return -F.logsigmoid(self.beta * (won - lost) - self.gamma)
