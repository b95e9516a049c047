"""SLiC: a hinge that keeps the chosen answer's log-probability above the rejected one's, plus imitation of the chosen.

    loss = max(0, delta - logp_w + logp_l) - alpha * logp_w / n_w                                      all (P,), P pairs

    delta  margin in nats on whole answers
    alpha  weight of the imitation;  n_w tokens of the chosen answer
Start:      delta + alpha log V for a model that knows nothing, where both answers are equally long.
Paper:      Zhao et al., 2023, arXiv:2305.10425, eq. 1.
Departures: what is imitated is the chosen answer (the paper allows any target, such as that of a first stage), by a mean
            over its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class SLiC(PairObjective):
    paper: ClassVar[str] = "arXiv:2305.10425"
    cards: ClassVar[tuple[int, ...]] = (14,)
    reference: ClassVar[str] = ""
    idle: ClassVar[bool] = True

    delta: float = 1.0
    alpha: float = 1.0

    def loss(self, pair: PairLogp) -> Tensor:
        return torch.relu(self.delta - pair.chosen + pair.rejected) - self.alpha * pair.means[0]
