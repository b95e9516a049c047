"""Partial fine-tuning by name: the lowest layers, the embeddings or anything that matches a pattern stays still.

    theta_i moves  iff  it matches `train` (default: all) and does not match `freeze` and its layer >= `lowest`

    freeze   regular expressions over parameter names that stay still
    train    regular expressions over parameter names that move (empty: all)
    lowest   number of lowest layers that stay still, the embeddings with them; below 1: their share of all layers
    dropout  whether layers that stay still keep their dropout in training (the paper's way); False: they compute as in use
Start:      the base model.
Cost:       with `lowest` = k nothing is computed backward below layer k.
Paper:      Lee et al., 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", arXiv:1911.03090.
Departures: none; patterns are this file's convenience. A pattern that matches nothing is an error.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import nn

from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection
from luthier.tuners._partial import below_layers


@dataclass(frozen=True)
class Freeze(PartialTuner):
    paper: ClassVar[str] = "arXiv:1911.03090"
    cards: ClassVar[tuple[int, ...]] = (33, 46)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    lowest: int | float = 0
    dropout: bool = True

    @classmethod
    def example(cls) -> Self:
        return cls(lowest=1)

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        names = [n for n, _ in model.named_parameters()]
        moving = set(_matching(names, self.train, "train")) if self.train else set(names)
        moving -= set(_matching(names, self.freeze, "freeze"))
        still = tuple(f"{module}." for module in self._still(model))
        moving -= {n for n in names if n.startswith(still)}
        if not moving:
            raise LuthierError("tuner 'freeze' leaves nothing to train: loosen tuner.freeze or lower tuner.lowest")
        return Selection(whole=moving)

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        if not self.dropout:
            for name in self._still(model):
                model.get_submodule(name).register_forward_pre_hook(_as_in_use)
        return super().wrap(model, task, seed)

    def _still(self, model: nn.Module) -> list[str]:
        """Modules of the lowest layers, and what lies below them."""
        if not self.lowest:
            return []
        body = anatomy(model)
        count = round(self.lowest * len(body.layers)) if self.lowest < 1 else int(self.lowest)
        if not 0 < count <= len(body.layers):
            raise LuthierError(f"tuner.lowest is {self.lowest}, but the model has {len(body.layers)} layers")
        return [*below_layers(model, body), *(layer.name for layer in body.layers[:count])]


def _as_in_use(module: nn.Module, args: tuple[object, ...]) -> None:
    module.eval()


def _matching(names: list[str], patterns: tuple[str, ...], key: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        hits = [n for n in names if re.search(pattern, n)]
        if not hits:
            raise LuthierError(f"tuner.{key}: '{pattern}' matches no parameter (the first is '{names[0]}')")
        found += hits
    return found
