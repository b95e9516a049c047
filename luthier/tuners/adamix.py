"""AdaMix: every adapter has M experts; a step trains one of them, drawn at random, and serving uses their mean.

    y' = y + act(y W_down^i + a^i) W_up^j + c^j                y (B, T, D), W_down^i (D, R), W_up^j (R, D)
    training  i, j ~ uniform {1 .. M}, apart for each site and anew for each optimiser step
    serving   W_down = mean_i W_down^i, W_up = mean_j W_up^j, biases alike

    experts  M;  size  R
    share    "up" or "down": the experts have this half in common
    targets  roles whose output is adapted: "down" (feed-forward output), "o" (attention output)
    folded   set by `core.adapt.folded`: the adapter holds the mean only
Start:      W_up = 0, biases 0: exactly the base model, whoever is drawn. W_down Kaiming-uniform (a = sqrt 5), each its own.
Cost:       M (2 R D + R + D) scalars a site in training (less what is shared), 2 R D + R + D when served, as one adapter; a
            step computes one adapter.
Paper:      Wang et al., 2022, "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning", arXiv:2205.12410,
            sections 3.2 to 3.4.
Departures: no consistency loss between two draws: one draw holds for a whole step, so that micro-batches add up to the step
            that they split, and a loss asks the model once. Outside luthier's own loop every forward pass draws, from
            torch's global generator. Experts of a site are one tensor, so one that is not drawn has gradient zero, not none:
            the optimiser's momentum and decay go on. What the experts have in common is a choice; by default nothing.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, activation
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners._unified import AdapterPart


class Half(nn.Module):
    """n linear maps of one shape; `drawn` is the one in use, None: drawn at every pass. Their mean outside of training."""

    def __init__(self, n: int, inputs: int, outputs: int, zero: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(n, outputs))
        self.drawn: int | None = None
        if not zero:
            for expert in self.weight:
                nn.init.kaiming_uniform_(expert.data, a=math.sqrt(5))

    def mean(self) -> tuple[Tensor, Tensor]:
        return self.weight.mean(0), self.bias.mean(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, *self.mean())
        i = int(torch.randint(len(self.weight), ())) if self.drawn is None else self.drawn
        return F.linear(x, self.weight[i], self.bias[i])


class MixturePart(ModulePart):
    def __init__(self, width: int, size: int, experts: int, share: str, act: str):
        super().__init__()
        self.down = Half(1 if share == "down" else experts, width, size, zero=False)
        self.up = Half(1 if share == "up" else experts, size, width, zero=True)
        self.act_name, self.act = act, activation(act)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.up(self.act(self.down(y)))

    def folded(self) -> AdapterPart:
        part = AdapterPart(self.down.weight.shape[2], self.up.weight.shape[1], self.down.weight.shape[1], self.act_name)
        for mine, theirs in ((self.down, part.down), (self.up, part.up)):
            weight, bias = (t.detach().clone() for t in mine.mean())
            theirs.weight, theirs.bias = nn.Parameter(weight), nn.Parameter(bias)
        return part


@dataclass(frozen=True)
class AdaMix(ModuleTuner):
    paper: ClassVar[str] = "arXiv:2205.12410"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "fold", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    experts: int = 4
    size: int = 16
    share: Literal["none", "up", "down"] = "none"
    act: str = "gelu"
    targets: tuple[str, ...] = ("down",)
    folded: bool = False

    def __post_init__(self) -> None:
        for name in ("experts", "size"):
            if getattr(self, name) < 1:
                raise LuthierError(f"tuner.{name} is {getattr(self, name)}: at least 1")

    @classmethod
    def example(cls) -> Self:
        return cls(experts=3, size=4)

    def build(self, width: int) -> MixturePart | AdapterPart:
        if self.folded:
            return AdapterPart(width, width, self.size, self.act)
        return MixturePart(width, self.size, self.experts, self.share, self.act)

    def before_step(self, model: nn.Module, rng: random.Random) -> None:
        for half in (m for m in model.modules() if isinstance(m, Half)):
            half.drawn = rng.randrange(len(half.weight))

    def parameter_count(self, model: nn.Module) -> int:
        D, R = anatomy(model).width, self.size
        down, up = (1 if self.folded or self.share == half else self.experts for half in ("down", "up"))
        return (down * (R * D + R) + up * (R * D + D)) * len(self.target_modules(model))
