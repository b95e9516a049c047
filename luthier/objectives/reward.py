"""Reward: one score for a prompt with an answer, higher for the better of two.

    loss = mean over prompts of the mean over i better than j of
           - log sigmoid( r_i - r_j - m ) + center_rewards_coefficient (r_i + r_j)^2               r (K,), K answers

    r        output of a scalar head at the last token of prompt and answer
    better   by scores or ranks: up to K (K - 1) / 2 pairs of a prompt, which one forward pass of each answer serves; of a
             preference the first. Equal answers are no pair, and a prompt without one counts with loss 0
    m        0, or with margin: scores the difference of the two answers' scores
    center_rewards_coefficient   pulls rewards towards 0; without it a constant added to all of them changes nothing
Start:      log 2 for a head that says nothing (without margin).
Cost:       a forward pass an answer, all of a prompt in one batch. What comes out is a folder with a head of one output: a
            `reward` of rollouts.
Paper:      Ouyang et al., 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al., 2023, Llama 2, arXiv:2307.09288, eq. 2;
            centring: Eisenstein et al., 2023, arXiv:2312.09244, section 2.
Departures: the last token is the last real one, also where the padding has the id of the end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, Objective


@dataclass(frozen=True)
class Reward(Objective):
    paper: ClassVar[str] = "arXiv:2203.02155"
    cards: ClassVar[tuple[int, ...]] = (49,)
    rows: ClassVar[tuple[str, ...]] = ("preference", "ranked")
    task: ClassVar[str] = "classification"

    margin: Literal["none", "scores"] = "none"
    center_rewards_coefficient: float = 0.0

    def weight(self, batch: Batch) -> float:
        assert batch.group is not None
        return float(batch.group[-1] + 1)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.group is not None
        r = scorer.class_logits(batch)[:, 0]  # (A,)
        r = r.to(torch.promote_types(r.dtype, torch.float32))
        better, worse = pairs(batch)
        of = batch.group[better]
        share = 1 / torch.bincount(of, minlength=1).to(r)[of]  # (P,): the pairs of a prompt count as one
        won, lost, n = r[better], r[worse], float(len(of.unique()))
        gap = won - lost
        if self.margin == "scores":
            assert batch.scores is not None
            gap = gap - (batch.scores[better] - batch.scores[worse]).to(r)
        losses = -F.logsigmoid(gap) + self.center_rewards_coefficient * (won + lost) ** 2
        told = {
            "accuracy": (won > lost).to(r), "rewards/chosen": won, "rewards/rejected": lost, "rewards/margins": won - lost,
        }  # fmt: skip
        figures = {k: ((share * v.detach()).sum(), n) for k, v in told.items()}
        return Loss((share * losses).sum(), self.weight(batch), figures)


def pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Answers (P,), (P,), the first better than the second: by their scores, or by their order where they have none."""
    assert batch.group is not None
    place = torch.arange(batch.answers, device=batch.group.device)
    scores = -place if batch.scores is None else batch.scores
    above = (scores[:, None] > scores[None]) & (batch.group[:, None] == batch.group[None])
    better, worse = above.nonzero(as_tuple=True)
    return better, worse
