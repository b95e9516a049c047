"""Reward: one score for a prompt with an answer, higher for the better of two.

    loss = - log sigmoid( r_w - r_l - m ) + center_rewards_coefficient (r_w + r_l)^2              all (P,), P pairs

    r        output of a scalar head at the last token of prompt and answer
    m        0, or with margin: scores the difference of the two answers' scores
    center_rewards_coefficient   pulls rewards towards 0; without it a constant added to all of them changes nothing
Start:      log 2 for a head that says nothing (without margin).
Cost:       two forward passes a pair, in one batch. What comes out is a folder with a head of one output: a `reward` of
            rollouts.
Paper:      Ouyang et al., 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al., 2023, Llama 2, arXiv:2307.09288, eq. 2;
            centring: Eisenstein et al., 2023, arXiv:2312.09244, section 2.
Departures: the mean is over pairs, not over prompts with all their pairs. The last token is the last real one, also where
            the padding has the id of the end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, Objective


@dataclass(frozen=True)
class Reward(Objective):
    paper: ClassVar[str] = "arXiv:2203.02155"
    cards: ClassVar[tuple[int, ...]] = (49,)
    rows: ClassVar[tuple[str, ...]] = ("preference",)
    task: ClassVar[str] = "classification"

    margin: Literal["none", "scores"] = "none"
    center_rewards_coefficient: float = 0.0

    def weight(self, batch: Batch) -> float:
        return float(batch.answers // 2)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        r = scorer.class_logits(batch)[:, 0]  # (2P,)
        r = r.to(torch.promote_types(r.dtype, torch.float32))
        won, lost, P = r[0::2], r[1::2], self.weight(batch)
        gap = won - lost
        if self.margin == "scores":
            assert batch.scores is not None
            gap = gap - (batch.scores[0::2] - batch.scores[1::2]).to(r)
        losses = -F.logsigmoid(gap) + self.center_rewards_coefficient * (won + lost) ** 2
        told = r.detach()
        figures = {
            "accuracy": ((told[0::2] > told[1::2]).to(r).sum(), P),
            "rewards/chosen": (told[0::2].sum(), P),
            "rewards/rejected": (told[1::2].sum(), P),
            "rewards/margins": ((told[0::2] - told[1::2]).sum(), P),
        }
        return Loss(losses.sum(), P, figures)
