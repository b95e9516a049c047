"""RLOO: raise the probability of a whole answer by how much better it is than the mean of the others to its prompt.

    R_k  = s_k - beta sum_n log( pi_old / pi_ref )[n]                            s (K,) rewards of a prompt's answers
    A_k  = R_k - mean_{j != k} R_j
    loss = - mean_k min( rho_k A_k, clip(rho_k, 1 - epsilon, 1 + epsilon_high) A_k )

    rho      pi / pi_old of a whole answer (A,), the product of those of its tokens
    beta     strength of the pull towards the untuned model, as a part of the reward; 0: it is not asked
    epsilon_high           none: epsilon
    normalize_advantages   A less its mean and over its standard deviation over the round
Start:      0: ratio 1, and advantages of a prompt sum to 0. The KL of a model that has not moved is exactly 0.
Cost:       a round: K answers a prompt, then one forward pass to recall them, two with beta; nothing beside the policy.
Paper:      Ahmadian et al., 2024, Back to Basics, arXiv:2402.14740, section 3.3; Kool et al., 2019, "Buy 4 REINFORCE samples,
            get a baseline for free".
Departures: the ratio and its clip are trl's: in the first pass over a round the gradient is the paper's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.batch import Batch, GroupExample
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError
from luthier.objectives._policy import (
    PolicyObjective,
    by_answer,
    clipped,
    column,
    ratio_of,
    scores_of,
    surrogate,
    with_columns,
)


@dataclass(frozen=True)
class RLOO(PolicyObjective):
    paper: ClassVar[str] = "arXiv:2402.14740"
    cards: ClassVar[tuple[int, ...]] = (47, 49)

    beta: float = 0.05
    epsilon: float = 0.2
    epsilon_high: float | None = None
    normalize_advantages: bool = False

    def credit(self, answered: Sequence[GroupExample], memory: dict[str, float]) -> list[GroupExample]:
        found = []
        for e in answered:
            if len(e.answers) < 2:
                raise LuthierError(
                    "rloo compares an answer with the others to its prompt: set rollouts.answers to 2 or more"
                )
            R = scores_of(e)
            if self.beta:
                drift = zip(by_answer(e, "old"), by_answer(e, "ref"), strict=True)
                R = R - self.beta * torch.stack([(old - ref).sum() for old, ref in drift])
            found.append(R - (R.sum() - R) / (len(R) - 1))
        if self.normalize_advantages:
            everyone = torch.cat(found)
            found = [(A - everyone.mean()) / (everyone.std() + 1e-4) for A in found]
        return with_columns(answered, {"advantage": found})

    def weight(self, batch: Batch) -> float:
        return float(batch.answers)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        logp = scorer.token_logp(batch)
        advantage = column(batch, "advantage", logp)  # (A,)
        ratio = ratio_of(batch.by_answer(logp - column(batch, "old", logp)))
        total = -surrogate(ratio, advantage, *self.bounds).sum()
        at_work = clipped(ratio, advantage, *self.bounds).to(logp).sum()
        return Loss(total, self.weight(batch), {"clip_ratio": (at_work, self.weight(batch))})
