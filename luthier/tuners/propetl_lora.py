"""ProPETL over LoRA: one low-rank pair for all matrices of a role, of which every layer sees the part that its masks let through.

    W' = W + (alpha / r) (B * m_B) (A * m_A)          A (r, inputs), B (outputs, r), shared by all matrices of one name
    m_ij = 1  iff  s_ij is among the round(keep P Q) largest scores of its matrix

    r, alpha  rank and scale of the pair that all layers share
    keep      share of each factor that a layer sees; 1: the layers share the pair whole, and no mask is learned
    targets   roles of the matrices; those of one name (query, value) share, each name has a pair of its own
Start:      B = 0: exactly the base model. A and scores Kaiming-uniform (a = sqrt 5).
Cost:       trained r (inputs + outputs) scalars a name, and as many scores a matrix; folded for serving and stored then: the pairs
            and one bit for each score. Merged, nothing.
Paper:      Zeng, Zhang and Lu, 2023, "One Network, Many Masks: Towards More Parameter-Efficient Transfer Learning",
            arXiv:2305.17682, section 3.
Departures: none known; see `propetl` for the adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ReparamPart, ReparamTuner, linear_size
from luthier.core.method import LuthierError
from luthier.tuners._masks import Masks, check_keep


class Pairs(nn.Module):
    """The factors (A, B) that all matrices of one name share."""

    def __init__(self, sizes: dict[str, tuple[int, int]], r: int):
        super().__init__()
        self.A = nn.ParameterDict({n: nn.Parameter(torch.empty(r, inputs)) for n, (inputs, _) in sizes.items()})
        self.B = nn.ParameterDict({n: nn.Parameter(torch.zeros(outputs, r)) for n, (_, outputs) in sizes.items()})
        for A in self.A.values():
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))


class PairPart(ReparamPart):
    def __init__(self, of: str, masks: Masks, scale: float):
        super().__init__()
        self.of, self.masks, self.scale = of, masks, scale
        self.shared: Any
        self.register_module("shared", None)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.shared.A[self.of], self.shared.B[self.of]
        return self.masks.through("A", A), self.masks.through("B", B)

    def delta_weight(self) -> Tensor:
        A, B = self.factors()
        return self.scale * B @ A

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        return self.scale * F.linear(F.linear(x, A), B)

    def folded(self) -> PairPart:
        part = PairPart(self.of, self.masks.resting(), self.scale)
        part.shared = self.shared
        return part


@dataclass(frozen=True)
class ProPETLLoRA(ReparamTuner):
    paper: ClassVar[str] = "arXiv:2305.17682"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "merge", "fold", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    r: int = 32
    alpha: float = 64.0
    keep: float = 0.5
    targets: tuple[str, ...] = ("q", "v")
    folded: bool = False

    def __post_init__(self) -> None:
        check_keep(self.keep)

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0)

    def sizes(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the matrices of each name. Raises LuthierError where those of one name differ."""
        out: dict[str, tuple[int, int]] = {}
        for name in self.target_modules(model):
            size = linear_size(model.get_submodule(name))
            if out.setdefault(_of(name), size) != size:
                raise LuthierError(
                    f"{self.name}: the matrices '{_of(name)}' differ in shape, so that they cannot share one pair"
                )
        return out

    def build_shared(self, model: nn.Module) -> Pairs:
        return Pairs(self.sizes(model), self.r)

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> PairPart:
        inputs, outputs = linear_size(target)
        shapes = {} if self.keep == 1 else {"A": (self.r, inputs), "B": (outputs, self.r)}
        return PairPart(_of(name), Masks(shapes, self.keep, at_rest=self.folded), self.alpha / self.r)

    def parameter_count(self, model: nn.Module) -> int:
        pairs = sum(self.r * (i + o) for i, o in self.sizes(model).values())
        scores = 0 if self.folded or self.keep == 1 else sum(self.r * (i + o) for i, o in self.shapes(model))
        return pairs + scores


def _of(name: str) -> str:
    return name.rpartition(".")[2]
