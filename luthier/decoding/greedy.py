"""Greedy decoding: always the likeliest token.

    y_t = argmax_v z_t[v]                                                                  z (B, V)

Ties:       the smaller token id, as in transformers.
Cost:       one cached forward of a token per step and row.
Paper:      none; the plain baseline (temperature 0).
Departures: none. `logp` is the model's own, of the chosen tokens and the stop token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.decoding._family import Row, StepDecoder, certain


@dataclass(frozen=True)
class Greedy(StepDecoder):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (16,)

    def rule(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        return scores.argmax(-1)

    def probability(self, scores: Tensor) -> Tensor:
        return certain(scores)
