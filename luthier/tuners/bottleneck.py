"""Bottleneck adapter: a small two-layer network with a residual connection after attention and after feed-forward.

    y' = y + s * (act(LN(y) W_down + b_down) W_up + b_up)          y (B, T, D), W_down (D, R), W_up (R, D)

    size    R, the bottleneck
    scale   s
    targets roles whose output is adapted: "o" (attention output), "down" (feed-forward output)
    norm    LN before the projection, or none
Start:      W_up = 0, b_up = 0: exactly the base model. W_down Kaiming-uniform (a = sqrt 5).
Cost:       2 R D + R + D scalars a site (+ 2 D with `norm`); stays in the forward pass at serving time.
Paper:      Houlsby et al., 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751, figure 2.
Departures: W_up starts at zero rather than near zero; layer norms of the backbone stay frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import nn

from luthier.core.adapt import ModuleTuner
from luthier.core.anatomy import base_transformer
from luthier.tuners._unified import AdapterPart


@dataclass(frozen=True)
class Bottleneck(ModuleTuner):
    paper: ClassVar[str] = "arXiv:1902.00751"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})

    size: int = 16
    scale: float = 1.0
    act: str = "gelu"
    norm: bool = False
    targets: tuple[str, ...] = ("o", "down")

    @classmethod
    def example(cls) -> Self:
        return cls(size=4)

    def build(self, width: int) -> AdapterPart:
        return AdapterPart(width, width, self.size, self.act, "sequential", "scaled", self.scale, self.norm)

    def parameter_count(self, model: nn.Module) -> int:
        D = base_transformer(model).config.hidden_size
        site = 2 * self.size * D + self.size + D + (2 * D if self.norm else 0)
        return site * len(self.target_modules(model))
