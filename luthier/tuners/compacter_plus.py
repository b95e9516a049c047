"""Compacter++: Compacter's adapters after the feed-forward only.

    y' = y + act(y W_down + b_down) W_up + b_up
    W  = sum_i A_i (x) (s_i t_i^T)             down (D, R), up (R, D); s_i (inputs/n, rank), t_i (outputs/n, rank)

    n            number of terms; divides D and R
    A            (n, n, n) "slow" weights, one set for all adapters of the network, down and up alike
    s, t, b      "fast" weights, own to every projection
    size         R, the bottleneck;  rank  of each B_i;  act  between the projections
    spread       standard deviation of A at the start
    train_norms  copies of the backbone's norms are trained too, as in the released settings
    targets      roles whose output is adapted
Start:      t_up = 0, b = 0: exactly the base model. A ~ N(0, spread^2); s and the other t Glorot-uniform, gain sqrt 2.
Cost:       half of Compacter's: 3 (D + R) scalars a layer at rank 1, n^3 once, the norms; stays in the forward pass.
Paper:      Mahabadi et al., 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", arXiv:2106.04647,
            section 4 (0.047 % of T5-base is this with the norms).
Departures: t_up starts at zero, so that the start is the base for any spread; the released code draws it, with
            spread 1e-4, and starts near the base. The default spread is 0.01, which learns sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._hypercomplex import CompacterTuner


@dataclass(frozen=True)
class CompacterPlus(CompacterTuner):
    paper: ClassVar[str] = "arXiv:2106.04647"
    cards: ClassVar[tuple[int, ...]] = (42, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})

    targets: tuple[str, ...] = ("down",)
