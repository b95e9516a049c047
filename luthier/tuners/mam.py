"""MAM adapter, mix-and-match: a short prefix in every attention, and a scaled parallel adapter beside every feed-forward.

    head_i = attention(q_i, [P_K; K_i], [P_V; V_i])                          P_K, P_V (G, l, d)
    y'     = y + s * (relu(x W_down + b_down) W_up + b_up)                   y = feed_forward(x), (B, T, D)

    length  l, rows of the prefix: 30 for generation, 16 for classification in the paper
    size    R, bottleneck of the adapter: 512 and 16;  scale  s: 4 and 2
    mlp     width of the network that makes the prefix in training; 0: trained directly
    folded  set by `core.adapt.folded`: keys and values only
Start:      not the base model, because of the prefix; the adapter starts as nothing (W_up = 0).
Cost:       2 l G d scalars an attention module and 2 R D + R + D a feed-forward block when served.
Paper:      He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv:2110.04366,
            section 4.6.
Departures: rows of the prefix take no position; the adapter reads what the feed-forward reads, normed in pre-norm models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from luthier.core.adapt import BridgedTuner, CompositeTuner, ModuleLayer
from luthier.core.attention import AttentionLayer, AttentionModel
from luthier.tuners._unified import PrefixTuner, UnifiedTuner


@dataclass(frozen=True)
class MAM(CompositeTuner):
    paper: ClassVar[str] = "arXiv:2110.04366"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"fold", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3
    member_layers: ClassVar[tuple[type, ...]] = (AttentionLayer, ModuleLayer)
    model_class: ClassVar[type | None] = AttentionModel

    length: int = 30
    size: int = 512
    scale: float = 4.0
    mlp: int = 800
    folded: bool = False

    @classmethod
    def example(cls) -> Self:
        return cls(length=3, size=4, mlp=8)

    def members(self) -> tuple[BridgedTuner, ...]:
        return (
            PrefixTuner(length=self.length, mlp=self.mlp, folded=self.folded),
            UnifiedTuner(size=self.size, scale=self.scale),
        )
