"""GRPO: raise the probability of answers that are better than the other answers to the same prompt.

    A_k  = (s_k - mean_j s_j) / (std_j s_j + 1e-4)                               s (K,) rewards of a prompt's answers
    l_n  = - min( rho_n A, clip(rho_n, 1 - epsilon, 1 + epsilon_high) A ) + beta KL_n
    loss = mean over answers of the mean of l_n over the answer's tokens         loss_type: grpo
         = mean of l_n over all tokens of the step                               loss_type: dapo, the default

    rho      pi / pi_old of a token (N,); with importance_sampling_level: sequence, the geometric mean over its answer
    beta     strength of the pull towards the untuned model; 0: it is not asked
    kl       estimate of KL_n: k3, pi_ref / pi - 1 - log pi_ref / pi; k1, k2 (objectives/_policy.py)
    use_bias_correction_kl       KL_n is multiplied by rho_n: its gradient is then right on average, which that of k3 is not
    epsilon_high      none: epsilon
    scale_rewards     std over the group, over all answers of the round (batch), or none: A is the difference alone
Start:      ratio 1: minus the mean of A over what is averaged, which is 0 for `grpo`; KL exactly 0.
Cost:       a round: K answers a prompt, then one forward pass to recall them, two with beta; nothing beside the policy.
Paper:      Shao et al., 2024, DeepSeekMath, arXiv:2402.03300, eq. 3 and 4; `dapo` and epsilon_high: Yu et al., 2025,
            arXiv:2503.14476, eq. 8; ratio of a sequence: Zheng et al., 2025, GSPO, arXiv:2507.18071, eq. 7; KL times
            rho: DeepSeek-V3.2, 2025, arXiv:2512.02556.
Departures: std is that of a sample (K - 1) and 1e-4 is added, as in trl. `dapo` divides by the tokens of the optimiser
            step, where trl takes their mean over the steps of a round: the same where a round is one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.core.batch import Batch, GroupExample
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss
from luthier.objectives._policy import (
    KL,
    PolicyObjective,
    clipped,
    column,
    ratio_of,
    scores_of,
    surrogate,
    with_columns,
)


@dataclass(frozen=True)
class GRPO(PolicyObjective):
    paper: ClassVar[str] = "arXiv:2402.03300"
    cards: ClassVar[tuple[int, ...]] = (47, 49)

    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    loss_type: Literal["dapo", "grpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    kl: Literal["k1", "k2", "k3"] = "k3"
    use_bias_correction_kl: bool = True

    def credit(self, answered: Sequence[GroupExample], memory: dict[str, float]) -> list[GroupExample]:
        scores = [scores_of(e) for e in answered]
        everyone = torch.cat(scores)

        def advantage(s: Tensor) -> Tensor:
            base = {"group": s, "batch": everyone, "none": s[:0]}[self.scale_rewards]
            scale = base.std() + 1e-4 if len(base) > 1 else 1.0
            return (s - s.mean()) / scale

        return with_columns(answered, {"advantage": [advantage(s) for s in scores]})

    def weight(self, batch: Batch) -> float:
        assert batch.target is not None
        return float(batch.answers if self.loss_type == "grpo" else len(batch.target))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.owner is not None
        logp = scorer.token_logp(batch)  # (N,)
        advantage = column(batch, "advantage", logp)[batch.owner]
        tokens = torch.bincount(batch.owner, minlength=batch.answers).to(logp)  # (A,)
        log_ratio = logp - column(batch, "old", logp)
        if self.importance_sampling_level == "sequence":
            log_ratio = (batch.by_answer(log_ratio) / tokens)[batch.owner]
        ratio = ratio_of(log_ratio)
        losses, N = -surrogate(ratio, advantage, *self.bounds), float(len(logp))
        figures = {"clip_ratio": (clipped(ratio, advantage, *self.bounds).to(logp).sum(), N)}
        if self.beta:
            kl = KL[self.kl](logp, column(batch, "ref", logp))
            losses = losses + self.beta * (kl * ratio if self.use_bias_correction_kl else kl)
            figures["kl/token"] = (kl.detach().sum(), N)
        total = (batch.by_answer(losses) / tokens).sum() if self.loss_type == "grpo" else losses.sum()
        return Loss(total, self.weight(batch), figures)
