"""DyLoRA: a LoRA whose ranks are nested, so that one training run serves every rank up to R.

    W' = W + (alpha / b) * B[:, :b] A[:b, :],    b ~ uniform {1 .. R} in training, b = rank in use otherwise

    r       R, the largest rank; A (R, inputs), B (outputs, R)
    alpha   scale; alpha / b as in the paper's code
    serve   rank in use after training; None: R
    update  "all": rows 1..b learn; "single": only row b learns (the paper's cheaper variant)
Start:      B = 0: exactly the base model. A Kaiming-uniform.
Cost:       R (inputs + outputs) scalars a matrix; merged, nothing.
Paper:      Valipour et al., 2023, "DyLoRA: Parameter-Efficient Tuning of Pretrained Models using Dynamic Search-Free
            Low Rank Adaptation", arXiv:2210.07558, algorithm 1.
Departures: b is drawn for each matrix and step from torch's global generator (the paper draws one b a step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ReparamPart, ReparamTuner
from luthier.core.method import LuthierError


class NestedRanks(ReparamPart):
    def __init__(self, inputs: int, outputs: int, r: int, alpha: float, serve: int, single: bool):
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.alpha, self.serve, self.single = alpha, serve, single

    def delta_weight(self) -> Tensor:
        b = self.serve
        return (self.alpha / b) * self.B[:, :b] @ self.A[:b]

    def delta(self, x: Tensor) -> Tensor:
        b = self.serve
        if self.training:
            b = int(torch.randint(1, self.A.shape[0] + 1, ()))
        A, B = self.A[:b], self.B[:, :b]
        if self.training and self.single:
            A = torch.cat([A[:-1].detach(), A[-1:]])
            B = torch.cat([B[:, :-1].detach(), B[:, -1:]], 1)
        return (self.alpha / b) * F.linear(F.linear(x, A), B)


@dataclass(frozen=True)
class DyLoRA(ReparamTuner):
    paper: ClassVar[str] = "arXiv:2210.07558"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "merge", "off", "several", "generate"})

    r: int = 8
    alpha: float = 16.0
    serve: int | None = None
    update: Literal["all", "single"] = "all"
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self) -> None:
        if self.serve is not None and not 1 <= self.serve <= self.r:
            raise LuthierError(f"tuner.serve is {self.serve}: a rank between 1 and r = {self.r}")

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0)

    def build(self, inputs: int, outputs: int) -> NestedRanks:
        return NestedRanks(inputs, outputs, self.r, self.alpha, self.serve or self.r, self.update == "single")

    def parameter_count(self, model: nn.Module) -> int:
        return sum(self.r * (i + o) for i, o in self.shapes(model))
