"""DPO: raise the log-odds of the chosen answer over the rejected one, relative to a reference.

    loss = -log sigmoid( beta * [ (logp_w - ref_w) - (logp_l - ref_l) ] )          all (P,), P pairs

    beta    strength of the pull towards the reference
Start:      policy = reference gives exactly log 2.
Paper:      Rafailov et al., 2023, arXiv:2305.18290, eq. 7.
Departures: none. Each logp is a sum over answer tokens, not a mean. The reference is the untuned model, run once and
            stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


@dataclass(frozen=True)
class DPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2305.18290"
    cards: ClassVar[tuple[int, ...]] = (14, 33)

    def loss(self, pair: PairLogp) -> Tensor:
        margin = (pair.chosen - pair.ref_chosen) - (pair.rejected - pair.ref_rejected)  # (P,)
        return -F.logsigmoid(self.beta * margin)
