"""CPO: DPO without its reference terms, plus imitation of the chosen answer.

    loss = -log sigmoid( beta * [ logp_w - logp_l ] ) - alpha * logp_w / n_w                           all (P,), P pairs

    beta   scale of the log-odds
    alpha  weight of the imitation;  n_w tokens of the chosen answer
Start:      log 2 + alpha log V for a model that knows nothing, where both answers are equally long.
Paper:      Xu et al., 2024, arXiv:2401.08417, section 4.
Departures: imitation is a mean over the tokens of each answer, as in the public code, not a sum. trl takes one mean over
            all chosen tokens of a micro-batch, so that a step depends on how it is split; where chosen answers are
            equally long both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class CPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2401.08417"
    cards: ClassVar[tuple[int, ...]] = (14,)
    reference: ClassVar[str] = ""

    beta: float = 0.1
    alpha: float = 1.0

    def loss(self, pair: PairLogp) -> Tensor:
        return -F.logsigmoid(self.beta * (pair.chosen - pair.rejected)) - self.alpha * pair.means[0]
