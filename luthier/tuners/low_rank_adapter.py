"""Low-rank adapter: adapters whose two matrices are products of thin ones, Compacter without Kronecker products.

    y' = y + act(y s_d t_d^T + b_d) s_u t_u^T + b_u       s_d (D, rank), t_d (R, rank), s_u (R, rank), t_u (D, rank)

    size         R, the bottleneck;  rank  of both matrices;  act  between them
    train_norms  copies of the backbone's norms are trained too, as in the released settings
    targets      roles whose output is adapted: "o" (attention), "down" (feed-forward)
Start:      t_u = 0, b = 0: exactly the base model. The other factors Glorot-uniform, gain sqrt 2.
Cost:       2 rank (D + R) + D + R scalars an adapter + the norms; stays in the forward pass at serving time.
Paper:      Mahabadi et al., 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", arXiv:2106.04647,
            section 4, the baseline "Adapter-LowRank".
Departures: a matrix product at every rank; the released baseline multiplies its factors elementwise, which is an outer
            product at rank 1 only. t_u starts at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from luthier.tuners._hypercomplex import AdapterPart, AdapterTuner, LowRank


@dataclass(frozen=True)
class LowRankAdapter(AdapterTuner):
    paper: ClassVar[str] = "arXiv:2106.04647"
    cards: ClassVar[tuple[int, ...]] = (42, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 3e-3

    rank: int = 1

    @classmethod
    def example(cls) -> Self:
        return cls(size=8)

    def build(self, width: int) -> AdapterPart:
        down = LowRank(width, self.size, self.rank)
        return AdapterPart(down, LowRank(self.size, width, self.rank, zero=True), self.act)

    def site_count(self, width: int) -> int:
        return 2 * self.rank * (width + self.size) + width + self.size
