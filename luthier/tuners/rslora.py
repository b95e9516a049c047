"""rsLoRA: LoRA scaled by the square root of the rank, so that large ranks keep learning.

    W' = W + (alpha / sqrt r) * B A                        A (r, inputs), B (outputs, r)

Start:      B = 0: exactly the base model.
Cost:       as LoRA.
Paper:      Kalajdzievski, 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732, eq. 4.
Departures: none; peft's implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.tuners._lora import LoRAFamily


@dataclass(frozen=True)
class RsLoRA(LoRAFamily):
    paper: ClassVar[str] = "arXiv:2312.03732"
    cards: ClassVar[tuple[int, ...]] = (33, 60)

    def variant(self) -> dict[str, bool]:
        return {"use_rslora": True}
