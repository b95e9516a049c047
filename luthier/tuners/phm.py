"""PHM adapter: adapters whose matrices are sums of Kronecker products, each with factors of its own.

    y' = y + act(y W_down + b_down) W_up + b_up
    W  = sum_i A_i (x) B_i                     down (D, R), up (R, D); A (n, n, n), B_i (inputs/n, outputs/n)

    n            number of terms; divides D and R
    size         R, the bottleneck;  act  between the projections
    spread       standard deviation of A at the start
    train_norms  copies of the backbone's norms are trained too, as in the released settings
    targets      roles whose output is adapted: "o" (attention), "down" (feed-forward)
Start:      B_up = 0, b = 0: exactly the base model. A ~ N(0, spread^2), B_down Glorot-uniform, gain sqrt 2.
Cost:       2 (n^3 + D R / n) + D + R scalars an adapter + the norms; stays in the forward pass at serving time.
Paper:      Mahabadi et al., 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", arXiv:2106.04647,
            section 3.1; the layer is that of Zhang et al., 2021, arXiv:2102.08597.
Departures: B_up starts at zero rather than near it. W is formed at every call, so n saves parameters, not arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from luthier.tuners._hypercomplex import PHM, AdapterPart, AdapterTuner, divides


@dataclass(frozen=True)
class Phm(AdapterTuner):
    paper: ClassVar[str] = "arXiv:2106.04647"
    cards: ClassVar[tuple[int, ...]] = (42, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 3e-3

    n: int = 4
    spread: float = 0.1

    @classmethod
    def example(cls) -> Self:
        return cls(size=8, n=2)

    def build(self, width: int) -> AdapterPart:
        divides(self.n, width, self.size)
        down = PHM(width, self.size, self.n, self.spread)
        return AdapterPart(down, PHM(self.size, width, self.n, self.spread, zero=True), self.act)

    def site_count(self, width: int) -> int:
        return 2 * (self.n**3 + width * self.size // self.n) + width + self.size
