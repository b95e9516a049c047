"""Lightweight personalisation: embeddings and output layer alone move, or the last decoder block alone.

    theta_i moves  iff  i is the token table or the output matrix ("lightweight"),  or lies in the last block ("last_block")

    variant     "lightweight" (the paper's L-EO) or "last_block" (L-LDB)
    with_head   with "last_block": the output layer moves as well
Start:      the base model. Tied tables are one tensor, which moves as input and output at once.
Cost:       "last_block" computes nothing backward below its block; "lightweight" runs through all, without weight gradients.
Paper:      Zlotchevski et al., 2022, "Exploring and Evaluating Personalized Models for Code Generation", arXiv:2208.13928,
            section 3.
Departures: position tables stay still. In an encoder-decoder the last block is the decoder's, in an encoder its last one.
            With `with_head` and tied tables the input embeddings move too, and the saving below the block is lost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from luthier.core.anatomy import Anatomy, anatomy
from luthier.core.method import PartialTuner
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class Lightweight(PartialTuner):
    paper: ClassVar[str] = "arXiv:2208.13928"
    cards: ClassVar[tuple[int, ...]] = (21,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    variant: Literal["lightweight", "last_block"] = "lightweight"
    with_head: bool = False

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        body, out = anatomy(model), Selection()
        whole_block = self.variant == "last_block"
        names = [body.layers[-1].name] if whole_block else [body.embedding, *_head(body)]
        for name in [*names, *(_head(body) if whole_block and self.with_head else [])]:
            out.add_module(model, name)
        return out


def _head(body: Anatomy) -> list[str]:
    return [body.head] if body.head else []
