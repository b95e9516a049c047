"""Control LoRA: a low-rank product for every label, added for the rows that carry it, so that one model answers in several ways.

    y = W x + (alpha / r) B_c A_c x             for a row with label c        A_c (r, inputs), B_c (outputs, r), W (outputs, inputs)

    labels, by, control    names of the controls; column of the rows that holds their label; what acts where a row carries none:
             a label or "mean", all in equal parts. Empty: the first where the model is asked, and an error in training
    r        rank;  alpha  scale;  targets  roles that get a pair (q k v o up gate down)
One batch may hold rows of all labels: each goes through its own matrices, and labels that do not occur get no gradient. Weight
decay is off. Merging is refused: it would write one control into the weights that all controls share.
Asking:     `control: bad`, or weights as in {good: 1.5, bad: -0.5}, in the settings of a model (`luthier generate --control`);
            weights mix A and B, not their products.
Start:      B_c = 0: exactly the base model. A_c Kaiming-uniform (a = sqrt 5).
Cost:       r (inputs + outputs) scalars a matrix and label; in a batch of B rows with labels A and B are copied B times.
Paper:      Xue et al., 2023, "Parameter-Efficient Tuning Helps Language Model Alignment", arXiv:2310.00819: its first stage with
            low-rank adaptation.
Departures: the paper's ranks and rates were not at hand: those of LoRA. No dropout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ReparamPart, ReparamTuner
from luthier.core.method import Refusal
from luthier.tuners._controls import Controls, ControlTuner


class PairOfEach(ReparamPart):
    """A_c (r, inputs) and B_c (outputs, r) for every label. What acts is decided by `shared`."""

    shared: Controls

    def __init__(self, labels: tuple[str, ...], inputs: int, outputs: int, r: int, alpha: float):
        super().__init__()
        self.A = nn.ParameterDict({name: torch.empty(r, inputs) for name in labels})
        self.B = nn.ParameterDict({name: torch.zeros(outputs, r) for name in labels})
        for start in self.A.values():
            nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        self.scale = alpha / r

    def delta_weight(self) -> Tensor:
        raise Refusal(
            "control_lora cannot be merged: one control would be in the weights that all controls share. Ship the base and the "
            "adapter folder"
        )

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.shared.of(self.A), self.shared.of(self.B)
        if A.ndim == 2:
            return self.scale * F.linear(F.linear(x, A), B)
        rows = x.reshape(len(A), -1, x.shape[-1])  # (B, T, inputs); some models hand on (B T, inputs)
        return self.scale * (rows @ A.mT @ B.mT).view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class ControlLoRA(ControlTuner, ReparamTuner):
    paper: ClassVar[str] = "arXiv:2310.00819"
    cards: ClassVar[tuple[int, ...]] = (43,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 3e-4

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0, control="mean")

    def build(self, inputs: int, outputs: int) -> PairOfEach:
        return PairOfEach(self.labels, inputs, outputs, self.r, self.alpha)

    def parameter_count(self, model: nn.Module) -> int:
        return sum(self.r * (i + o) for i, o in self.shapes(model)) * len(self.labels)
