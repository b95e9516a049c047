"""SLERP: from one set of weights to another along the arc between them, tensor by tensor.

    theta = sin((1 - t) a) / sin a * theta_1 + sin(t a) / sin a * theta_2
    cos a = <theta_1, theta_2> / (|theta_1| |theta_2|)

    t    place on the way: 0 is the first checkpoint, 1 the second, to the last bit
    near cosine (in size) from which on the straight line is taken instead: sin a is too small to divide by
Start:      t = 0 is the first checkpoint; equal checkpoints come back.
Cost:       one tensor of each checkpoint in memory at a time.
Paper:      Shoemake, 1985, "Animating Rotation with Quaternion Curves", SIGGRAPH, section 3.3.
Departures: the formula is for unit vectors; for weights the angle is that of the directions and the lengths stay in, as
            merging tools do. A tensor of zeros has no direction: the straight line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.core.method import Edit
from luthier.edits._family import between, weighted_sum


@dataclass(frozen=True)
class Slerp(Edit):
    paper: ClassVar[str] = "Shoemake, 1985, SIGGRAPH, doi:10.1145/325334.325242"
    cards: ClassVar[tuple[int, ...]] = (33,)
    inputs: ClassVar[tuple[int, int | None]] = (2, 2)
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree"})

    t: float = 0.5
    near: float = 0.9995

    def __post_init__(self) -> None:
        between(self.t, 0, 1, "t")

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        a, b = (x.flatten().to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)
        lengths = float(a.norm()) * float(b.norm())
        cosine = float(a @ b) / lengths if lengths else 1.0
        if abs(cosine) > self.near:
            return weighted_sum(tensors, [1 - self.t, self.t])
        angle = math.acos(cosine)
        by = [math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)]
        return weighted_sum(tensors, [1.0, 0.0] if self.t == 0 else [0.0, 1.0] if self.t == 1 else by)
