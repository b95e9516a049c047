"""LN-Tuning: only the weights and biases of the normalisation layers move.

    y = g * (x - mean) / sd + b;   g, b <- g, b - eta * grad L                         g, b (D,); RMS norms have no b

Start:      the base model.
Cost:       D or 2 D scalars a norm. The backward pass runs through all layers, without weight gradients.
Paper:      Zhao et al., 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
            arXiv:2312.11420, section 3.
Departures: none. All norms of the model move: of layers, after the embeddings, after the last layer, in a language head.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from luthier.core.anatomy import all_norms
from luthier.core.method import PartialTuner
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class LNTuning(PartialTuner):
    paper: ClassVar[str] = "arXiv:2312.11420"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    def missing(self, model: nn.Module) -> str:
        return "" if all_norms(model) else "normalisation layers with parameters"

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        out = Selection()
        for name in all_norms(model):
            out.add_module(model, name)
        return out
