"""Magnitude pruning: the smallest weights become zero.

    W_ij = 0 where |W_ij| is among the share `sparsity` that is smallest

    sparsity  share of entries that go: floor(sparsity n) of n, no more and no less
    scope     what is ranked together: "tensor" (each matrix), "model" (all matrices), "row" (what one output reads)
Start:      sparsity 0 is the model itself.
Cost:       scope "model" reads the matrices two or three times more, to find the threshold.
Paper:      Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626, section 3.
Departures: one step without retraining. The layers' matrices only: embeddings, head, norms and biases stay. A weight that
            is zero already counts among the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.core.probe import Probe
from luthier.core.ranking import all_but, largest, largest_in_rows
from luthier.edits._family import Places, Pruning, State, between, groups


@dataclass(frozen=True)
class Magnitude(Pruning):
    paper: ClassVar[str] = "arXiv:1506.02626"

    sparsity: float = 0.5
    scope: Literal["tensor", "model", "row"] = "tensor"

    def __post_init__(self) -> None:
        between(self.sparsity, 0, 1, "sparsity")

    def plan(self, states: Sequence[State], model: nn.Module | None = None, probe: Probe | None = None) -> Places:
        places = super().plan(states, model, probe)
        if self.scope == "model":
            (state,) = states

            def scores() -> Iterator[tuple[str, Tensor]]:
                for name in places.weights:
                    for key, matrix in groups(name, state[name], places):
                        yield from ((key, rows) for rows in self.by_block(matrix, None))

            places.choice = largest(scores, all_but(self.sparsity))
        return places

    def gone(self, name: str, scores: Callable[[], Iterator[Tensor]], places: Places) -> Iterator[Tensor]:
        if self.scope == "row":
            for rows in scores():
                yield ~largest_in_rows(rows, all_but(self.sparsity)(rows.shape[1]))
            return
        if self.scope == "tensor":
            choice = largest(lambda: ((name, rows) for rows in scores()), all_but(self.sparsity))
        else:
            choice = places.choice
        stays = choice.masks(name)
        for rows in scores():
            yield ~stays(rows)
