"""DPO: raise the log-odds of the chosen answer over the rejected one, relative to a reference.

    loss = - (1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),    h = f'(r_w) - f'(r_l)            all (P,), P pairs

    r        = pi / pi_ref of an answer, the ratio of its probabilities
    beta     strength of the pull towards the reference
    label_smoothing   e: the share of pairs taken to be labelled the wrong way round
    divergence        whose pull it is, by the derivative of its generator:
             reverse_kl        f'(r) = log r                       DPO itself
             forward_kl        f'(r) = 1 - 1/r
             js_divergence     f'(r) = log( 2r / (1 + r) )
             alpha_divergence  f'(r) = (r^(alpha - 1) - 1) / (alpha - 1)       alpha = 1: reverse_kl; alpha = 0: forward_kl
Start:      policy = reference gives exactly log 2, whatever the options.
Paper:      Rafailov et al., 2023, arXiv:2305.18290, eq. 7; divergences: Wang et al., 2023, arXiv:2309.16240, theorem 1;
            label smoothing: Mitchell, 2023, "A note on DPO with noisy preferences".
Departures: exponents are held at 80, so that ratios beyond float32 stay finite. Each logp is a sum over answer tokens,
            not a mean. The reference is the untuned model, run once and stored. trl's `sigmoid` loss leaves label
            smoothing out; its `aot` loss on one pair has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from luthier.objectives._family import PairLogp, PairObjective

LARGEST = 80.0
"""Exponent at which exp still fits into float32."""


@dataclass(frozen=True)
class DPO(PairObjective):
    paper: ClassVar[str] = "arXiv:2305.18290"
    cards: ClassVar[tuple[int, ...]] = (14, 33)

    beta: float = 0.1
    label_smoothing: float = 0.0
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    alpha: float = 0.5

    def slope(self, log_ratio: Tensor) -> Tensor:
        """f'(r) from log r, (P,)."""
        if self.divergence == "forward_kl":
            return 1 - (-log_ratio).clamp(max=LARGEST).exp()
        if self.divergence == "js_divergence":
            return math.log(2) + F.logsigmoid(log_ratio)
        if self.divergence == "alpha_divergence" and self.alpha != 1:
            power = self.alpha - 1
            return (power * log_ratio).clamp(max=LARGEST).expm1() / power
        return log_ratio

    def loss(self, pair: PairLogp) -> Tensor:
        won, lost = pair.gains
        h = self.beta * (self.slope(won) - self.slope(lost))  # (P,)
        e = self.label_smoothing
        return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)
