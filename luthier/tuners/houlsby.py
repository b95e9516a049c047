"""Houlsby adapter: a bottleneck with a residual connection after every block, and the model's own norms trained with it.

    y' = y + gelu(y W_down + b_down) W_up + b_up            y = block(x), (B, T, D);  W_down (D, R), W_up (R, D)

    size         R
    targets      roles of the matrices that end a block: of attention, attention to the encoder, feed-forward
    train_norms  the adapter trains and stores copies of the backbone's norms
    Other fields span the space of `_unified.py`; this point is sequential, plainly added.
Start:      W_up = 0, b_up = 0: exactly the base model. W_down Kaiming-uniform (a = sqrt 5).
Cost:       2 R D + R + D scalars a block, and the norms; stays in the forward pass at serving time.
Paper:      Houlsby et al., 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751, figure 2, section 2.1.
Departures: W_up starts at zero rather than near zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._unified import Composition, Insertion, UnifiedTuner


@dataclass(frozen=True)
class Houlsby(UnifiedTuner):
    paper: ClassVar[str] = "arXiv:1902.00751"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    act: str = "gelu"
    targets: tuple[str, ...] = ("o", "cross_o", "down")
    insertion: Insertion = "sequential"
    composition: Composition = "add"
    train_norms: bool = True
