"""N:M sparsity: of every M weights in a row that stand side by side, the N with the highest score stay.

    W_ij = 0 unless S_ij is among the n largest of its group j // m              S_ij = |W_ij|, or |W_ij| ||X_j||_2

    n, m    2 and 4 is the pattern that sparse tensor cores compute with
    score   "magnitude", or "wanda": by the norms of the matrix's inputs on data
Start:      n = m is the model itself.
Cost:       magnitude: one pass over the weights; wanda: one forward pass over the data as well.
Paper:      Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, section 3; with data: Sun et al.,
            2024, arXiv:2306.11695, section 3.
Departures: the layers' matrices only; no retraining. Zeros are stored as ordinary zeros: no kernel of luthier's is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from luthier.core.method import LuthierError
from luthier.core.ranking import largest_in_rows
from luthier.edits._family import Places, Pruning


@dataclass(frozen=True)
class NM(Pruning):
    paper: ClassVar[str] = "arXiv:2104.08378"

    n: int = 2
    m: int = 4
    score: Literal["magnitude", "wanda"] = "magnitude"

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise LuthierError(f"edit.n is {self.n} and edit.m {self.m}: n of every m weights stay, 0 <= n <= m")

    @property
    def by_data(self) -> bool:
        return self.score == "wanda"

    def gone(self, name: str, scores: Callable[[], Iterator[Tensor]], places: Places) -> Iterator[Tensor]:
        for block in scores():
            rows, inputs = block.shape
            if inputs % self.m:
                raise LuthierError(
                    f"'{name}' has {inputs} inputs, which groups of {self.m} do not fill: choose another edit.m"
                )
            yield ~largest_in_rows(block.reshape(rows, -1, self.m), self.n).view(rows, inputs)
