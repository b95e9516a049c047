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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.probe import Probe
from luthier.core.ranking import largest, largest_in_rows
from luthier.edits._family import Places, Pruning, State, between


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
                    yield name, self.scores(state[name], None)

            total = sum(state[name].numel() for name in places.weights)
            places.choice = largest(scores, total - int(self.sparsity * total + 1e-6))
        return places

    def gone(self, name: str, scores: Tensor, places: Places) -> Tensor:
        if self.scope == "row":
            n = scores.shape[1]
            return ~largest_in_rows(scores, n - int(self.sparsity * n + 1e-6))
        if self.scope == "model":
            turned = places.weights[name].transposed  # ties are counted in the order of the file
            kept = places.choice.mask(name, scores.T.contiguous() if turned else scores)
            return ~(kept.T if turned else kept)
        flat = scores.flatten()
        kept = largest(lambda: [(name, flat)], flat.numel() - int(self.sparsity * flat.numel() + 1e-6))
        return ~kept.mask(name, flat).view(torch.Size(scores.shape))
