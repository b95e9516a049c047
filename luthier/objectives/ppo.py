"""PPO: raise the probability of tokens that turned out better than a learned value expected, within a clip.

    r_t  = - kappa log( pi_old / pi_ref )[t] + [t last] clip(s, -reward_clip, reward_clip)      s reward of the answer
    d_t  = r_t + gamma V_{t+1} - V_t,     A_t = sum_{j >= 0} (gamma lam)^j d_{t+j},    return_t = A_t + V_t
    loss = - min( rho_t A_t, clip(rho_t, 1 - epsilon, 1 + epsilon) A_t )
           + vf_coef / 2 max( (v_t - return_t)^2, (clip(v_t, V_t - epsilon_value, V_t + epsilon_value) - return_t)^2 )

    rho      pi / pi_old of a token (N,);  the loss is a mean over tokens
    v, V     value (N,) of what stands before a token, now and when the answers were written: a linear head on the state that
             the model's own head reads, which is thrown away afterwards. V is 0 behind the last token
    whiten   A less its mean and over its standard deviation, over all tokens of a round
    kappa    strength of the pull towards the untuned model; where `target` is given it is adapted after each round of n
             answers: kappa <- kappa (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), KL a mean over answers
Start:      values are 0; the ratio is 1 and the KL exactly 0, whatever the options.
Cost:       a round: K answers a prompt, then two forward passes to recall them (one with kappa 0); one vector of width D.
Paper:      Schulman et al., 2017, arXiv:1707.06347, eq. 7 and 11; its kappa and rewards: Ziegler et al., 2019,
            arXiv:1909.08593, section 2.2; for language models of many languages: Okapi, Lai et al., 2023, arXiv:2307.16039.
Departures: no bonus for entropy. kappa moves once a round, not once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, GroupExample
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss
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


def advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (T,) of one answer from rewards and values (T,) of its tokens."""
    out, ahead, value = torch.zeros_like(rewards), 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        ahead = float(rewards[t] + gamma * value - values[t]) + gamma * lam * ahead
        out[t], value = ahead, float(values[t])
    return out


@dataclass(frozen=True)
class PPO(PolicyObjective):
    paper: ClassVar[str] = "arXiv:1707.06347"
    cards: ClassVar[tuple[int, ...]] = (44, 47, 49)

    kappa: float = 0.1
    target: float | None = None
    horizon: float = 10000.0
    epsilon: float = 0.2
    epsilon_value: float = 0.2
    vf_coef: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    reward_clip: float = 10.0
    whiten: bool = True

    @property
    def strength(self) -> float:
        return self.kappa

    def head(self, model: nn.Module) -> nn.Module:
        body = model.get_output_embeddings()  # type: ignore[operator]
        like = next(body.parameters())
        head = nn.Linear(like.shape[-1], 1, device=like.device, dtype=like.dtype)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    def values(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi and v, (N,) each."""
        logp, states = scorer.logp_and_states(batch)
        return logp, scorer.plain.own_head(states)[:, 0].to(logp)

    def recall(self, scorer: Scorer, batch: Batch) -> dict[str, Tensor]:
        return dict(zip(("old", "value"), self.values(scorer, batch), strict=True))

    def credit(self, answered: Sequence[GroupExample], memory: dict[str, float]) -> list[GroupExample]:
        kappa, found, drifts = memory.get("kappa", self.kappa), [], []
        for e in answered:
            old = e.extras["old"].double()
            drift = old - e.extras["ref"] if self.kappa else torch.zeros_like(old)
            rewards = list((-kappa * drift).split([len(a) for a in e.answers]))
            parts = []
            for r, s, V in zip(rewards, scores_of(e), by_answer(e, "value"), strict=True):
                r[-1] += s.clamp(-self.reward_clip, self.reward_clip)
                parts.append(advantages(r, V, self.gamma, self.lam))
            found.append(torch.cat(parts))
            drifts.append(drift.sum())
        if self.target is not None:
            n = sum(len(e.answers) for e in answered)
            error = float(torch.stack(drifts).sum()) / n / self.target - 1
            memory["kappa"] = kappa * (1 + min(max(error, -0.2), 0.2) * n / self.horizon)
        returns = [A + e.extras["value"] for A, e in zip(found, answered, strict=True)]
        if self.whiten:
            everyone = torch.cat(found)
            found = [(A - everyone.mean()) / (everyone.std(correction=0) + 1e-8) for A in found]
        return with_columns(answered, {"advantage": found, "return": returns})

    def weight(self, batch: Batch) -> float:
        assert batch.target is not None
        return float(len(batch.target))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        logp, v = self.values(scorer, batch)
        advantage, V, wanted = (column(batch, name, logp) for name in ("advantage", "value", "return"))
        ratio = ratio_of(logp - column(batch, "old", logp))
        near = torch.clamp(v, V - self.epsilon_value, V + self.epsilon_value)
        miss = torch.maximum((v - wanted) ** 2, (near - wanted) ** 2) / 2
        losses = self.vf_coef * miss - surrogate(ratio, advantage, *self.bounds)
        at_work, N = clipped(ratio, advantage, *self.bounds).to(logp).sum(), self.weight(batch)
        return Loss(losses.sum(), N, {"clip_ratio": (at_work, N), "loss/value": (miss.detach().sum(), N)})
