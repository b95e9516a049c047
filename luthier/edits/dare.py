"""DARE: most of what tuning added is dropped at random, the rest is scaled up, and what is left is added up.

    tau_i  = m_i * (theta_i - theta_0) / density           m_i ~ Bernoulli(density), one draw an entry
    theta  = theta_0 + lambda sum_i w_i tau_i              theta_0: the base, given last

    density    share that stays;   rescale  false: it is not scaled up
    elect      true: signs are elected and only those that agree are added, as in TIES
    weight     w, one number or one for each model;   lambda  scale;   normalize  weights are divided by their sum
    seed       of the draws: they depend on it, on the model's place and on the tensor's name alone
Start:      density 1 is task arithmetic; the expectation over draws is that at any density.
Cost:       a piece of a tensor of each checkpoint in memory at a time.
Paper:      Yu et al., 2024, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
            arXiv:2311.03099, section 3.
Departures: none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from luthier.edits._family import TaskVectors, agreeing, between, weighted_sum


@dataclass(frozen=True)
class Dare(TaskVectors):
    paper: ClassVar[str] = "arXiv:2311.03099"
    cards: ClassVar[tuple[int, ...]] = (33,)

    density: float = 0.1
    rescale: bool = True
    elect: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        between(self.density, 0, 1, "density")

    def local(self, name: str, read: Any, plan: Any) -> Callable[[int], Draws]:
        return cache(lambda model: Draws(f"{self.seed}/{model}/{name}"))

    def combine(self, vectors: list[Tensor], by: list[float], plan: Callable[[int], Draws]) -> Tensor:
        for i, vector in enumerate(vectors):
            vector.mul_(plan(i).below(self.density, vector.numel()).view(vector.shape))
            if self.rescale and self.density > 0:
                vector.div_(self.density)
        if self.elect:
            return agreeing(vectors, by, self.normalize)
        return weighted_sum(vectors, self.shares(len(vectors)))


class Draws:
    """Numbers from 0 to 2^32 - 1, the same for the same key whatever was drawn before and in pieces of any size."""

    def __init__(self, key: str):
        self.bits = np.random.SFC64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "little"))
        self.left = np.empty(0, np.uint32)

    def below(self, share: float, n: int) -> Tensor:
        """True for a share of the next n."""
        missing = n - len(self.left)
        if missing > 0:
            self.left = np.concatenate([self.left, self.bits.random_raw((missing + 1) // 2).view(np.uint32)])
        now, self.left = self.left[:n], self.left[n:]
        return torch.from_numpy(now < round(share * 2**32))
