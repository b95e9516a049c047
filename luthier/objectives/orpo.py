"""ORPO: imitation of the chosen answer with a penalty on the odds of the rejected one, in one stage, without a reference.

    loss = - m_w - lambda * log sigmoid( log odds_w - log odds_l ),    log odds = m - log(1 - exp m)   all (P,), P pairs

    m      logp / n: log-probability of an answer a token;  n its tokens
    beta   lambda, the weight of the odds
Start:      log V + lambda log 2 for a model that knows nothing.
Paper:      Hong et al., 2024, arXiv:2403.07691, eq. 4 and 7.
Departures: none. trl imitates the prompt as well, and takes one mean over all tokens of a micro-batch: where prompts are
            one token, and chosen answers equally long, both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective


def log_odds(logp: Tensor) -> Tensor:
    """log p / (1 - p) from log p; an answer that is certain counts as one that is nearly so."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


@dataclass(frozen=True)
class ORPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2403.07691"
    cards: ClassVar[tuple[int, ...]] = (14, 64)
    reference: ClassVar[str] = ""

    beta: float = 0.1

    def loss(self, pair: PairLogp) -> Tensor:
        won, lost = pair.means
        return -won - self.beta * F.logsigmoid(log_odds(won) - log_odds(lost))
