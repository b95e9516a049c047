"""BitFit: only the bias vectors of the model move.

    y = W x + b;   b <- b - eta * grad_b L;   W stays                       b (outputs,), norms' biases included

    roles   matrices whose biases move (empty: every bias; the paper's smaller set is "q", "up")
Start:      the base model.
Cost:       one scalar an output: about 0.1 % of BERT. The backward pass runs through all layers, without weight gradients.
Paper:      Ben Zaken, Goldberg and Ravfogel, 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
            Masked Language-models", arXiv:2106.10199, section 3.
Departures: none. Models without biases (Llama, T5) are refused.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from luthier.core.anatomy import anatomy
from luthier.core.method import PartialTuner, Refusal
from luthier.core.trainable import Selection
from luthier.tuners._partial import biases


@dataclass(frozen=True)
class BitFit(PartialTuner):
    paper: ClassVar[str] = "arXiv:2106.10199"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    roles: tuple[str, ...] = ()

    def missing(self, model: nn.Module) -> str:
        return "" if biases(model) else "bias vectors"

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        found = set(biases(model))
        if not self.roles:
            return Selection(whole=found)
        anatomy(model).modules(self.roles)  # a wrong role is an error that names the right ones
        out = Selection()
        for matrix in (m for layer in anatomy(model).layers for m in layer.matrices if m.role in self.roles):
            bias = f"{matrix.module}.bias"
            if bias in found and matrix.blocks:
                out.blocks.setdefault(bias, []).extend((0, start, stop) for _, start, stop in matrix.blocks)
            elif bias in found:
                out.whole.add(bias)
        if not (out.whole or out.blocks):
            raise Refusal(
                f"bitfit: the matrices {', '.join(self.roles)} of this model have no biases: leave tuner.roles out"
            )
        return out
