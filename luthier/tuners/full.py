"""Full fine-tuning: every parameter moves.

    theta <- theta - eta * grad L(theta)                     theta: all P parameters, tied tensors once

Start:      the base model.
Cost:       gradients and optimiser state for every parameter.
Paper:      common practice; Howard and Ruder, 2018, arXiv:1801.06146.
Departures: none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from luthier.core.method import PartialTuner
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class Full(PartialTuner):
    paper: ClassVar[str] = "arXiv:1801.06146"
    cards: ClassVar[tuple[int, ...]] = (5, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        return Selection(whole={n for n, _ in model.named_parameters()})
