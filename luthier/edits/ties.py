"""TIES: task vectors are trimmed, a sign is elected for every weight, and only those of that sign are averaged.

    tau_i  = the share `density` of theta_i - theta_0 that is largest in size, zero elsewhere            (trim)
    sign   = sgn sum_i w_i tau_i                                                                        (elect)
    tau    = sum_{i in A} w_i tau_i / sum_{i in A} w_i     A: models whose tau_i has that sign          (disjoint mean)
    theta  = theta_0 + lambda tau                          theta_0: the base, given last

    density    share of each task vector that stays;   scope  "model": ranked over all tensors, "tensor": in each
    weight     w, one number or one for each model;    lambda  scale;   normalize  false: the sum instead of the mean
Start:      density 0 or lambda 0 is the base.
Cost:       scope "model" reads every checkpoint two or three times more, to find the thresholds.
Paper:      Yadav et al., 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv:2306.01708, section 4.
Departures: a sum of exactly zero elects no sign and leaves the base. The paper ranks over the whole model; "tensor" is
            what merging tools do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from luthier.core.probe import Probe
from luthier.core.ranking import Largest, largest
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
        total = sum(base[n].numel() for n in base if base[n].is_floating_point())
        keep = int(self.density * total + 1e-6)
        return [largest(partial(sizes, one, base), keep) for one in tuned]

    def combine(self, name: str, vectors: list[Tensor], by: list[float], plan: Any) -> Tensor:
        for i, vector in enumerate(vectors):
            size = vector.abs()
            if plan is None:
                choice = largest(lambda s=size: [(name, s)], int(self.density * size.numel() + 1e-6))  # type: ignore[misc]
            else:
                choice = plan[i]
            vector.masked_fill_(~choice.mask(name, size), 0)
        return agreeing(vectors, by, self.normalize)


def sizes(tuned: State, base: State) -> Iterator[tuple[str, Tensor]]:
    """|tau| tensor by tensor."""
    for name in tuned:
        one = tuned[name]
        if one.is_floating_point():
            yield name, (wide(one) - wide(base[name])).abs()
