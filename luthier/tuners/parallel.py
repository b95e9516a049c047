"""Parallel adapter: a small two-layer network beside the feed-forward block, scaled and added to what the block gives.

    y' = y + s * (relu(x W_down + b_down) W_up + b_up)     y = feed_forward(x), (B, T, D);  W_down (D, R), W_up (R, D)

    size         R;  scale  s: 4 for generation, 2 for classification in the released settings
    targets      roles of blocks: "feed_forward", "attention", "cross_attention"; or of matrices
    act          "relu", or "identity": low rank, as LoRA without biases
    insertion    "parallel", from x, or "sequential", from y
    composition  "scaled"; "learned": s trained from `scale`; "add": s = 1; "gated": (1 - g) y + g (...), g trained from 0
    norm, biases  a layer norm in front; b_down and b_up
Start:      W_up = 0, b_up = 0: exactly the base model. W_down Kaiming-uniform (a = sqrt 5).
Cost:       2 R D + R + D scalars a block; stays in the forward pass at serving time.
Paper:      He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv:2110.04366,
            equation 8, section 4.6.
Departures: x is what the sublayer reads: in pre-norm models the normed states (the paper's models are post-norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._unified import UnifiedTuner


@dataclass(frozen=True)
class Parallel(UnifiedTuner):
    paper: ClassVar[str] = "arXiv:2110.04366"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    scale: float = 4.0
