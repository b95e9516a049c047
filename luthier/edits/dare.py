"""DARE: most of what tuning added is dropped at random, the rest is scaled up, and what is left is added up.

    tau_i  = m_i * (theta_i - theta_0) / density           m_i ~ Bernoulli(density), one draw an entry
    theta  = theta_0 + lambda sum_i w_i tau_i              theta_0: the base, given last

    density    share that stays;   rescale  false: it is not scaled up
    elect      true: signs are elected and only those that agree are added, as in TIES
    weight     w, one number or one for each model;   lambda  scale;   normalize  weights are divided by their sum
    seed       of the draws: they depend on it, on the model's place and on the tensor's name alone
Start:      density 1 is task arithmetic; the expectation over draws is that at any density.
Cost:       one tensor of each checkpoint in memory at a time.
Paper:      Yu et al., 2024, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
            arXiv:2311.03099, section 3.
Departures: none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.edits._family import TaskVectors, agreeing, between


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

    def combine(self, name: str, vectors: list[Tensor], by: list[float], plan: Any) -> Tensor:
        for i, vector in enumerate(vectors):
            vector.mul_(drawn(vector.shape, self.density, f"{self.seed}/{i}/{name}"))
            if self.rescale and self.density > 0:
                vector.div_(self.density)
        if self.elect:
            return agreeing(vectors, by, self.normalize)
        return weighted(vectors, self.shares(len(vectors)))


def drawn(shape: Sequence[int], density: float, key: str) -> Tensor:
    """True for a share `density` of entries, the same for the same key whatever was drawn before."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def weighted(vectors: list[Tensor], by: Sequence[float]) -> Tensor:
    total = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, by, strict=True):
        total.add_(vector, alpha=weight)
    return total
