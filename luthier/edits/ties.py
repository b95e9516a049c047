"""TIES: task vectors are trimmed, a sign is elected for every weight, and only those of that sign are averaged.

    tau_i  = the share `density` of theta_i - theta_0 that is largest in size, zero elsewhere            (trim)
    sign   = sgn sum_i w_i tau_i                                                                        (elect)
    tau    = sum_{i in A} w_i tau_i / sum_{i in A} w_i     A: models whose tau_i has that sign          (disjoint mean)
    theta  = theta_0 + lambda tau                          theta_0: the base, given last

    density    share of each task vector that stays;   scope  "model": ranked over all tensors, "tensor": in each
    weight     w, one number or one for each model;    lambda  scale;   normalize  false: the sum instead of the mean
Start:      density 0 or lambda 0 is the base.
Cost:       a piece of a tensor of each checkpoint in memory at a time; every checkpoint is read two or three times more, to
            find the thresholds.
Paper:      Yadav et al., 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv:2306.01708, section 4.
Departures: a sum of exactly zero elects no sign and leaves the base. The paper ranks over the whole model; "tensor" is
            what merging tools do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.core.probe import Probe
from luthier.core.ranking import Largest, largest, share_of
from luthier.core.shards import make, pieces
from luthier.edits._family import State, TaskVectors, agreeing, between, wide


@dataclass(frozen=True)
class Ties(TaskVectors):
    paper: ClassVar[str] = "arXiv:2306.01708"
    cards: ClassVar[tuple[int, ...]] = (33,)

    density: float = 0.2
    scope: Literal["model", "tensor"] = "model"
    normalize: bool = True

    def __post_init__(self) -> None:
        between(self.density, 0, 1, "density")

    def plan(
        self, states: Sequence[State], model: nn.Module | None = None, probe: Probe | None = None
    ) -> list[Largest] | None:
        if self.scope == "tensor":
            return None
        *tuned, base = states
        names = [n for n in base if make(base, n)[1].is_floating_point]
        return [largest(partial(sizes, one, base, names), share_of(self.density)) for one in tuned]

    def local(
        self, name: str, read: Callable[[], Iterable[Sequence[Tensor]]], plan: list[Largest] | None
    ) -> list[Callable[[Tensor], Tensor]]:
        """What stays of each task vector: masks of pieces of its sizes, in order."""
        if plan is None:
            models = len(next(iter(read()))) - 1
            plan = [largest(partial(_sizes, read, i, name), share_of(self.density)) for i in range(models)]
        return [choice.masks(name) for choice in plan]

    def combine(self, vectors: list[Tensor], by: list[float], plan: list[Callable[[Tensor], Tensor]]) -> Tensor:
        for vector, stays in zip(vectors, plan, strict=True):
            vector.mul_(stays(vector.abs()))
        return agreeing(vectors, by, self.normalize)


def sizes(tuned: State, base: State, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """|tau| piece by piece."""
    for name in names:
        yield from _sizes(partial(pieces, (tuned, base), name), 0, name)


def _sizes(read: Callable[[], Iterable[Sequence[Tensor]]], model: int, name: str) -> Iterator[tuple[str, Tensor]]:
    for parts in read():
        yield name, (wide(parts[model]) - wide(parts[-1])).abs()
