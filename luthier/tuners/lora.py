"""LoRA: add a trained low-rank product to frozen weight matrices.

    W' = W + (alpha / r) * B A                             A (r, inputs), B (outputs, r), W (outputs, inputs)

    r        rank;  alpha  scale;  dropout  on the input of A
    targets  roles that get a pair (q k v o up gate down), or ("all",)
Start:      B = 0: exactly the base model. A Kaiming-uniform.
Cost:       r (inputs + outputs) scalars a matrix; merged, nothing.
Paper:      Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3.
Departures: none; peft's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._lora import LoRAFamily


@dataclass(frozen=True)
class LoRA(LoRAFamily):
    paper: ClassVar[str] = "arXiv:2106.09685"
    cards: ClassVar[tuple[int, ...]] = (33, 60, 63)
