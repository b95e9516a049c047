"""Pfeiffer adapter: one bottleneck with a residual connection in each layer, after the feed-forward block only.

    y' = y + relu(y W_down + b_down) W_up + b_up            y = feed_forward(x), (B, T, D);  W_down (D, R), W_up (R, D)

    size    R; the paper takes D / 16
    Other fields span the space of `_unified.py`; this point is sequential, plainly added, without norms.
Start:      W_up = 0, b_up = 0: exactly the base model. W_down Kaiming-uniform (a = sqrt 5).
Cost:       2 R D + R + D scalars a layer, half of an adapter after both blocks; stays in the forward pass.
Paper:      Pfeiffer et al., 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
            arXiv:2005.00247, section 3.2 and appendix A.2.
Departures: in post-norm models the adapter reads the block's output before the residual is added and normed; the
            released variant reads the normed sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._unified import Composition, Insertion, UnifiedTuner


@dataclass(frozen=True)
class Pfeiffer(UnifiedTuner):
    paper: ClassVar[str] = "arXiv:2005.00247"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    targets: tuple[str, ...] = ("down",)
    insertion: Insertion = "sequential"
    composition: Composition = "add"
