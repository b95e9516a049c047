"""DoRA: LoRA on the direction of each weight row, with the row's length trained apart.

    W' = m * (W + (alpha / r) B A) / ||W + (alpha / r) B A||            norm per output row; m (outputs,)

Start:      B = 0, m = ||W||: exactly the base model (to rounding). The norm is a constant in backward.
Cost:       r (inputs + outputs) + outputs scalars a matrix; merged, nothing.
Paper:      Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, eq. 5.
Departures: none; peft's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from luthier.core.adapt import linear_size
from luthier.tuners._lora import LoRAFamily, targets_of


@dataclass(frozen=True)
class DoRA(LoRAFamily):
    paper: ClassVar[str] = "arXiv:2402.09353"
    cards: ClassVar[tuple[int, ...]] = (33, 60)

    def variant(self) -> dict[str, bool]:
        return {"use_dora": True}

    def parameter_count(self, model: nn.Module) -> int:
        outputs = [linear_size(model.get_submodule(n))[1] for n in targets_of(model, self.targets, self.name)]
        return super().parameter_count(model) + sum(outputs)
