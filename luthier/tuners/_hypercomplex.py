"""Adapters whose matrices are sums of Kronecker products, and their low-rank relatives: the layers and where they go.

W = sum_i A_i (x) B_i                              W (P, Q), A (n, n, n), B (n, P/n, Q/n)
block (a, c) of term i is A_i[a, c] B_i            rows a P/n ... (a+1) P/n, columns c Q/n ... (c+1) Q/n

adapter   y' = y + up(act(down(y)))                y (B, T, D), down D -> R, up R -> D, both with a bias
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, activation, norm_modules
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError


class SlowWeights(nn.Module):
    """A (n, n, n), one set for all projections of an adapter."""

    def __init__(self, n: int, spread: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(n, n, n).normal_(0, spread))


class PHM(nn.Module):
    """x W + b with W = sum_i A_i (x) B_i; A its own."""

    def __init__(self, inputs: int, outputs: int, n: int, spread: float, zero: bool = False):
        super().__init__()
        self.A = nn.Parameter(torch.empty(n, n, n).normal_(0, spread))
        self.B = nn.Parameter(glorot(n, inputs // n, outputs // n, zero))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        W = torch.einsum("iac,ixy->axcy", self.A, self.B).reshape(x.shape[-1], -1)  # (P, Q)
        return x @ W + self.bias


class LowRankPHM(nn.Module):
    """The same with B_i = s_i t_i^T, s (n, P/n, rank), t (n, Q/n, rank); A is handed in. W is never formed.

    n (P + Q) rank + n^3 rank multiply-adds a token, against P Q for a product with W.
    """

    def __init__(self, inputs: int, outputs: int, n: int, rank: int, zero: bool = False):
        super().__init__()
        self.s = nn.Parameter(glorot(n, inputs // n, rank))
        self.t = nn.Parameter(glorot(n, outputs // n, rank, zero))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        n, p, rank = self.s.shape
        h = x.unflatten(-1, (n, p)) @ self.s.movedim(0, 1).reshape(p, n * rank)  # (..., a, i rank)
        h = torch.einsum("...air,iac->...cir", h.unflatten(-1, (n, rank)), A.to(h.device)).flatten(
            -2
        )  # (..., c, i rank)
        y = h @ self.t.transpose(1, 2).reshape(n * rank, -1)  # (..., c, Q/n)
        return y.flatten(-2) + self.bias


class LowRank(nn.Module):
    """x s t^T + b, s (P, rank), t (Q, rank)."""

    def __init__(self, inputs: int, outputs: int, rank: int, zero: bool = False):
        super().__init__()
        self.s = nn.Parameter(glorot(1, inputs, rank)[0])
        self.t = nn.Parameter(glorot(1, outputs, rank, zero)[0])
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.s @ self.t.T + self.bias


def glorot(terms: int, rows: int, columns: int, zero: bool = False) -> Tensor:
    """(terms, rows, columns): each term Glorot-uniform with gain sqrt 2, or zero."""
    bound = math.sqrt(2) * math.sqrt(6 / (rows + columns))
    return torch.zeros(terms, rows, columns) if zero else torch.empty(terms, rows, columns).uniform_(-bound, bound)


class AdapterPart(ModulePart):
    shared: SlowWeights | None

    def __init__(self, down: nn.Module, up: nn.Module, act: str):
        super().__init__()
        self.down, self.up, self.act = down, up, activation(act)
        self.shared: Any
        self.register_module("shared", None)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        slow = () if self.shared is None else (self.shared.A,)
        return y + self.up(self.act(self.down(y, *slow)), *slow)  # (B, T, D); the bottleneck is (B, T, R)


@dataclass(frozen=True)
class AdapterTuner(ModuleTuner):
    """Where the adapters are, and the norms that are trained with them."""

    size: int = 16
    act: str = "gelu"
    train_norms: bool = True
    targets: tuple[str, ...] = ("o", "down")

    def trained_copies(self, model: nn.Module) -> list[str]:
        return norm_modules(model) if self.train_norms else []

    def site_count(self, width: int) -> int:
        """Scalars of one adapter, without what it shares."""
        raise NotImplementedError

    def parameter_count(self, model: nn.Module) -> int:
        sites = self.site_count(base_transformer(model).config.hidden_size) * len(self.target_modules(model))
        return sites + self.copied_scalars(model)


def divides(n: int, width: int, size: int) -> None:
    """Raises LuthierError unless n divides width and size."""
    if width % n or size % n:
        common = [k for k in range(1, size + 1) if width % k == 0 and size % k == 0]
        near = sorted(common, key=lambda k: (abs(k - n), k))[:2]
        raise LuthierError(
            f"tuner.n is {n}, which must divide the model's width {width} and tuner.size {size}: "
            f"the nearest n is {' or '.join(map(str, sorted(near)))}"
        )


@dataclass(frozen=True)
class CompacterTuner(AdapterTuner):
    """Low-rank Kronecker sums with one A for the whole network; methods differ in where the adapters are."""

    learning_rate: ClassVar[float] = 3e-3
    n: int = 4
    rank: int = 1
    spread: float = 0.01

    @classmethod
    def example(cls) -> Self:
        return cls(size=8, n=4, spread=0.1)

    def build_shared(self, model: nn.Module) -> SlowWeights:
        return SlowWeights(self.n, self.spread)

    def build(self, width: int) -> AdapterPart:
        divides(self.n, width, self.size)
        down = LowRankPHM(width, self.size, self.n, self.rank)
        return AdapterPart(down, LowRankPHM(self.size, width, self.n, self.rank, zero=True), self.act)

    def site_count(self, width: int) -> int:
        return 2 * self.rank * (width + self.size) + width + self.size

    def parameter_count(self, model: nn.Module) -> int:
        return super().parameter_count(model) + self.n**3
