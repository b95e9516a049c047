"""ProPETL: one adapter for all layers, of which every layer sees the part that its own binary mask lets through.

    y' = y + act(y (W_down * m_down) + b_down) (W_up * m_up) + b_up       y (B, T, D), W_down (D, R), W_up (R, D)
    m_ij = 1  iff  s_ij is among the round(keep D R) largest scores of its matrix

    size     R, the bottleneck of the one adapter that all layers share (W, b)
    keep     share of each matrix that a layer sees; 1: the layers share the adapter whole, and no mask is learned
    targets  roles whose output is adapted: "o" (attention output), "down" (feed-forward output)
Start:      W_up = 0, b = 0: exactly the base model. W_down and scores Kaiming-uniform (a = sqrt 5).
Cost:       trained 2 R D + R + D scalars once and 2 R D scores a site; folded for serving and stored then: the one adapter and
            2 R D bits a site. Products are dense.
Paper:      Zeng, Zhang and Lu, 2023, "One Network, Many Masks: Towards More Parameter-Efficient Transfer Learning",
            arXiv:2305.17682, section 3.
Departures: W_up starts at zero rather than near zero. Biases are shared and have no mask. One task: masks of several tasks over
            one adapter are several adapters here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, activation
from luthier.core.anatomy import anatomy
from luthier.tuners._masks import Masks, check_keep


class Prototype(nn.Module):
    """The adapter that all layers share."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)


class PrototypePart(ModulePart):
    def __init__(self, masks: Masks, act: str):
        super().__init__()
        self.masks, self.act_name, self.act = masks, act, activation(act)
        self.shared: Any
        self.register_module("shared", None)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        down, up = (getattr(self.shared, half) for half in ("down", "up"))
        hidden = self.act(F.linear(y, self.masks.through("down", down.weight), down.bias))  # (B, T, R)
        return y + F.linear(hidden, self.masks.through("up", up.weight), up.bias)

    def folded(self) -> PrototypePart:
        part = PrototypePart(self.masks.resting(), self.act_name)
        part.shared = self.shared
        return part


@dataclass(frozen=True)
class ProPETL(ModuleTuner):
    paper: ClassVar[str] = "arXiv:2305.17682"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "fold", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    size: int = 64
    keep: float = 0.5
    act: str = "gelu"
    targets: tuple[str, ...] = ("down",)
    folded: bool = False

    def __post_init__(self) -> None:
        check_keep(self.keep)

    @classmethod
    def example(cls) -> Self:
        return cls(size=4)

    def build_shared(self, model: nn.Module) -> Prototype:
        return Prototype(anatomy(model).width, self.size)

    def build(self, width: int) -> PrototypePart:
        shapes = {} if self.keep == 1 else {"down": (self.size, width), "up": (width, self.size)}
        return PrototypePart(Masks(shapes, self.keep, at_rest=self.folded), self.act)

    def parameter_count(self, model: nn.Module) -> int:
        D, R = anatomy(model).width, self.size
        scores = 0 if self.folded or self.keep == 1 else 2 * D * R
        return 2 * D * R + D + R + scores * len(self.target_modules(model))
