"""Partial fine-tuning by name: the lowest layers, the embeddings or anything that matches a pattern stays still.

    theta_i moves  iff  it matches `train` (default: all) and does not match `freeze` and its layer >= `lowest`

    freeze   regular expressions over parameter names that stay still
    train    regular expressions over parameter names that move (empty: all)
    lowest   number of lowest layers that stay still, the embeddings with them
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

from luthier.core.anatomy import Anatomy, anatomy
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class Freeze(PartialTuner):
    paper: ClassVar[str] = "arXiv:1911.03090"
    cards: ClassVar[tuple[int, ...]] = (33, 46)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    lowest: int = 0

    @classmethod
    def example(cls) -> Self:
        return cls(lowest=1)

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        names = [n for n, _ in model.named_parameters()]
        moving = set(_matching(names, self.train, "train")) if self.train else set(names)
        moving -= set(_matching(names, self.freeze, "freeze"))
        if self.lowest:
            body = anatomy(model)
            if self.lowest > len(body.layers):
                raise LuthierError(f"tuner.lowest is {self.lowest}, but the model has {len(body.layers)} layers")
            still = [*_before_layers(model, body), *(layer.name for layer in body.layers[: self.lowest])]
            moving -= {n for n in names if any(n.startswith(s + ".") for s in still)}
        if not moving:
            raise LuthierError("tuner 'freeze' leaves nothing to train: loosen tuner.freeze or lower tuner.lowest")
        return Selection(whole=moving)


def _before_layers(model: nn.Module, body: Anatomy) -> list[str]:
    """Modules below the first layer: every table outside the layers, and in encoders the norm that follows them."""
    inside = tuple(f"{layer.name}." for layer in body.layers)
    tables = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding) and not n.startswith(inside)]
    return [*tables, body.embedding.rsplit(".", 1)[0]] if body.kind == "encoder" else tables


def _matching(names: list[str], patterns: tuple[str, ...], key: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        hits = [n for n in names if re.search(pattern, n)]
        if not hits:
            raise LuthierError(f"tuner.{key}: '{pattern}' matches no parameter (the first is '{names[0]}')")
        found += hits
    return found
