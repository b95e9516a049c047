"""Drawing under a budget of parameters: whole units by a random walk, or single scalars.

fill     walk the units in a random order once; take each one that fits in what is left (what is left at the end is
         smaller than every unit that was skipped)
scatter  exactly n scalars, uniformly over all scalars of the tensors, or the same number from every group of tensors
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def fill(units: Sequence[tuple[T, int]], budget: int, rng: random.Random) -> tuple[list[T], int]:
    """What was taken of (unit, size) pairs, and what is left of the budget."""
    taken = []
    for unit, size in rng.sample(list(units), len(units)):
        if size <= budget:
            taken.append(unit)
            budget -= size
    return taken, budget


def scatter(sizes: dict[str, int], n: int, rng: random.Random) -> dict[str, Tensor]:
    """Flat indices (sorted, int64) of n scalars drawn from the tensors together; tensors without one are left out."""
    drawn = sorted(rng.sample(range(sum(sizes.values())), n))
    out, at, start = {}, 0, 0
    for name, size in sizes.items():
        mine = []
        while at < n and drawn[at] < start + size:
            mine.append(drawn[at] - start)
            at += 1
        start += size
        if mine:
            out[name] = torch.tensor(mine)
    return out


def shares(groups: Sequence[int], n: int) -> list[int]:
    """n in equal parts over groups of these sizes; what a small group cannot take goes to the others."""
    out, left, order = [0] * len(groups), n, sorted(range(len(groups)), key=lambda i: groups[i])
    for rank, i in enumerate(order):
        out[i] = min(groups[i], -(-left // (len(order) - rank)))
        left -= out[i]
    return out
