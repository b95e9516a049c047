"""SparseAdapter: a bottleneck adapter that is pruned at its start and, at the same budget, as much wider.

    y' = y + s * (act(y W_down + b_down) W_up + b_up)          y (B, T, D), W_down (D, R), W_up (R, D)
    W = z * W0,   z_ij = 1  iff  score_ij is among the largest (1 - sparsity) D R of its matrix

    score  "random"     nothing; for matrices of one shape this is Erdos-Renyi as well
           "magnitude"  |w|                                  "snip"   |w * dL/dw|
           "fisher"     mean over rows of (dL_row/dw)^2      "grasp"  w * (H dL/dw): what holds up the flow of gradients

    size       bottleneck of the dense adapter with the same budget
    sparsity   share of the elements of each matrix that is pruned
    large      R = size / (1 - sparsity), so that the kept elements are as many as `size` has densely; False: R = size
    rows       rows of the run's data behind snip, fisher and grasp
    std        standard deviation of W_up where the scores are taken
Start:      W_up = 0, b_up = 0: exactly the base model. W_down Kaiming-uniform (a = sqrt 5).
Cost:       2 round((1 - sparsity) D R) + R + D scalars a site: kept values are stored and trained as vectors, so optimiser
            state and file shrink with them; the product itself is computed densely.
Paper:      He et al., 2022, "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters",
            arXiv:2210.04284, equations 3 to 5; scores: Lee et al., 2019 (SNIP), Wang et al., 2020 (GraSP).
Departures: with W_up = 0 every gradient score is zero, so scores are taken at the paper's near-zero start W_up ~ N(0, std^2);
            training then begins from W_up = 0. Matrices are pruned one by one. H g is a central difference (the loss is
            computed by a fused operation that has no second derivative). Outside
            luthier's own loop no rows are shown, and the gradient scores fall back to magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, activation
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError
from luthier.core.probe import Probe
from luthier.core.trainable import Selection, trainable_names

STEP = 1e-3
"""Of the difference behind H g, relative to the weights."""
Losses = Sequence[Callable[[], Tensor]]
Score = Callable[[list[Tensor], Losses], list[Tensor]]


class SparsePart(ModulePart):
    """`trial` holds the dense matrices (W_down, W_up) where scores are taken, until they are.

    A resumed run finds the places in its checkpoint.
    """

    down_at: Tensor
    up_at: Tensor

    def __init__(
        self, width: int, size: int, kept: int, scale: float, act: str, std: float, magnitude: bool, waits: bool
    ):
        super().__init__()
        self.width, self.size, self.act, self.scale = width, size, activation(act), scale
        self.down = nn.Parameter(torch.zeros(kept))
        self.up = nn.Parameter(torch.zeros(kept))
        self.down_bias = nn.Parameter(torch.zeros(size))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("down_at", torch.zeros(kept, dtype=torch.int32))  # places in the flattened matrix
        self.register_buffer("up_at", torch.zeros(kept, dtype=torch.int32))
        down, up = torch.empty(size, width), torch.randn(width, size) * std
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.trial: list[Tensor] = [down, up]
        self.scoring = False
        self.keep([down.abs(), up.abs()] if magnitude else [torch.rand(size, width), torch.rand(width, size)])
        if not waits:
            self.trial = []

    @torch.no_grad()
    def keep(self, scores: list[Tensor]) -> None:
        """Prune to the places with the largest scores."""
        for score, at in zip(scores, (self.down_at, self.up_at), strict=True):
            at.copy_(score.flatten().topk(at.numel()).indices.sort().values)
        self.down.copy_(self.trial[0].flatten()[self.down_at.long()])

    def matrices(self) -> tuple[Tensor, Tensor]:
        """W_down (R, D) and W_up (D, R), as outputs by inputs."""
        if self.scoring:
            return self.trial[0], self.trial[1]
        down = self.down.new_zeros(self.size * self.width).scatter(0, self.down_at.long(), self.down)
        up = self.up.new_zeros(self.size * self.width).scatter(0, self.up_at.long(), self.up)
        return down.view(self.size, self.width), up.view(self.width, self.size)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        down, up = self.matrices()
        hidden = self.act(F.linear(y, down, self.down_bias))  # (B, T, R)
        return y + self.scale * F.linear(hidden, up, self.up_bias)


@dataclass(frozen=True)
class SparseAdapter(ModuleTuner):
    paper: ClassVar[str] = "arXiv:2210.04284"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})

    size: int = 16
    sparsity: float = 0.5
    criterion: Literal["random", "magnitude", "snip", "fisher", "grasp"] = "snip"
    large: bool = True
    rows: int = 64
    std: float = 0.02
    scale: float = 1.0
    act: str = "gelu"
    targets: tuple[str, ...] = ("o", "down")

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise LuthierError(f"tuner.sparsity is {self.sparsity}: a number from 0 to below 1")

    @classmethod
    def example(cls) -> Self:
        return cls(size=4, rows=4)

    @property
    def bottleneck(self) -> int:
        """R."""
        return round(self.size / (1 - self.sparsity)) if self.large else self.size

    def kept(self, width: int) -> int:
        """Elements that are left of a matrix."""
        return max(1, round((1 - self.sparsity) * width * self.bottleneck))

    def build(self, width: int) -> SparsePart:
        return SparsePart(
            width, self.bottleneck, self.kept(width), self.scale, self.act, self.std,
            magnitude=self.criterion != "random", waits=self.criterion in SCORES,
        )  # fmt: skip

    def parameter_count(self, model: nn.Module) -> int:
        D = base_transformer(model).config.hidden_size
        return (2 * self.kept(D) + self.bottleneck + D) * len(self.target_modules(model))

    @property
    def chooses(self) -> bool:
        return self.criterion in SCORES

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        """All that moved still moves; what is chosen is where each kept value is in its matrix."""
        parts = [m for m in model.modules() if isinstance(m, SparsePart) and m.trial and m.down.requires_grad]
        for part in parts:
            part.trial = [t.to(part.down).requires_grad_() for t in part.trial]
            part.scoring = True
        dense = [t for part in parts for t in part.trial]
        with probe.rows(self.rows) as losses:
            scores = SCORES[self.criterion](dense, losses)
        for i, part in enumerate(parts):
            part.trial = [t.detach() for t in part.trial]
            part.scoring = False
            part.keep(scores[2 * i : 2 * i + 2])
            part.trial = []
        return Selection(whole=set(trainable_names(model)), note={"criterion": self.criterion, "rows": len(losses)})


def _gradient(dense: list[Tensor], losses: Losses, power: int = 1) -> list[Tensor]:
    """Mean over the rows of the gradient, or of a power of it."""
    total = [torch.zeros_like(t) for t in dense]
    for loss_of in losses:
        for sum_, g in zip(total, torch.autograd.grad(loss_of(), dense), strict=True):
            sum_ += g**power / len(losses)
    return total


def _snip(dense: list[Tensor], losses: Losses) -> list[Tensor]:
    return [(w * g).abs() for w, g in zip(dense, _gradient(dense, losses), strict=True)]


def _fisher(dense: list[Tensor], losses: Losses) -> list[Tensor]:
    return _gradient(dense, losses, 2)


def _grasp(dense: list[Tensor], losses: Losses) -> list[Tensor]:
    """w * H g: the change of the squared gradient when w is taken out is -2 of it, so the largest stay."""
    g = _gradient(dense, losses)
    width = math.sqrt(sum(float((x**2).sum()) for x in g)) or 1.0
    step = STEP * math.sqrt(sum(float((w.detach() ** 2).sum()) for w in dense)) / width
    sides = []
    for sign in (1, -1):
        _move(dense, g, sign * step)
        sides.append(_gradient(dense, losses))
        _move(dense, g, -sign * step)
    return [w.detach() * (a - b) / (2 * step) for w, a, b in zip(dense, *sides, strict=True)]


@torch.no_grad()
def _move(dense: list[Tensor], along: list[Tensor], step: float) -> None:
    for w, g in zip(dense, along, strict=True):
        w += step * g


SCORES: dict[str, Score] = {"snip": _snip, "fisher": _fisher, "grasp": _grasp}
