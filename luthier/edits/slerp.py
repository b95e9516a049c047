"""SLERP: from one set of weights to another along the arc between them, tensor by tensor.

    theta = sin((1 - t) a) / sin a * theta_1 + sin(t a) / sin a * theta_2
    cos a = <theta_1, theta_2> / (|theta_1| |theta_2|)

    t    place on the way: 0 is the first checkpoint, 1 the second, to the last bit
    near cosine (in size) from which on the straight line is taken instead: sin a is too small to divide by
Start:      t = 0 is the first checkpoint; equal checkpoints come back.
Cost:       a piece of a tensor of each checkpoint in memory at a time; every checkpoint is read twice.
Paper:      Shoemake, 1985, "Animating Rotation with Quaternion Curves", SIGGRAPH, section 3.3.
Departures: the formula is for unit vectors; for weights the angle is that of the directions and the lengths stay in, as
            merging tools do. A tensor of zeros has no direction: the straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luthier.core.method import Edit
from luthier.edits._family import between, weighted_sum


@dataclass(frozen=True)
class Slerp(Edit):
    paper: ClassVar[str] = "Shoemake, 1985, SIGGRAPH, doi:10.1145/325334.325242"
    cards: ClassVar[tuple[int, ...]] = (33,)
    elementwise: ClassVar[bool] = True
    inputs: ClassVar[tuple[int, int | None]] = (2, 2)
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree"})

    t: float = 0.5
    near: float = 0.9995

    def __post_init__(self) -> None:
        between(self.t, 0, 1, "t")

    def local(self, name: str, read: Callable[[], Iterable[Sequence[Tensor]]], plan: Any) -> list[float]:
        """The weights of both."""
        if self.t in (0, 1):
            return [1 - self.t, self.t]
        aa = bb = product = 0.0
        for pair in read():
            a, b = (x.flatten().double() for x in pair)
            aa, bb, product = aa + float(a @ a), bb + float(b @ b), product + float(a @ b)
        lengths = math.sqrt(aa) * math.sqrt(bb)
        cosine = max(-1.0, min(1.0, product / lengths)) if lengths else 1.0
        if abs(cosine) > self.near:
            return [1 - self.t, self.t]
        angle = math.acos(cosine)
        return [math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)]

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: list[float]) -> Tensor:
        return weighted_sum(tensors, plan)
