"""Wanda: weights that matter least for what they are given become zero, row by row, without retraining.

    S_ij = |W_ij| ||X_j||_2            X_j: feature j of the matrix's inputs over all tokens of the data, padding left out
    W_ij = 0 where S_ij is among the floor(sparsity n) smallest of row i          n: inputs; a row: what one output reads

    sparsity  share of every row that goes
Start:      sparsity 0 is the model itself.
Cost:       one forward pass over the data, with the model in memory.
Paper:      Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695, section 3.
Departures: all norms are those of the unpruned model; the paper prunes block by block and lets later blocks see earlier
            ones pruned. The layers' matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.ranking import all_but, largest_in_rows
from luthier.edits._family import Places, Pruning, between


@dataclass(frozen=True)
class Wanda(Pruning):
    paper: ClassVar[str] = "arXiv:2306.11695"
    cards: ClassVar[tuple[int, ...]] = (29,)

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        between(self.sparsity, 0, 1, "sparsity")

    @property
    def by_data(self) -> bool:
        return True

    def gone(self, name: str, scores: Callable[[], Iterator[Tensor]], places: Places) -> Iterator[Tensor]:
        for rows in scores():
            yield ~largest_in_rows(rows, all_but(self.sparsity)(rows.shape[1]))
