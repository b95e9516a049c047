"""Nucleus sampling: draw from the likeliest tokens that together hold a share of the probability.

    p = softmax(z / temperature);   keep the top_k likeliest;   renormalise;
    keep the smallest set of likeliest tokens whose mass reaches top_p;   renormalise;   y ~ p          p (B, V)

    temperature  0 is greedy, 1 the model's own distribution
    top_p        1 keeps every token
    top_k        0 keeps every token
Random state: one number per row and step from (seed, prompt, copy of that prompt): a row alone draws what it draws in
            a batch, and n copies of a prompt are n different samples.
Cost:       a sort of V per step and row where top_p < 1.
Paper:      Holtzman et al., 2020, The Curious Case of Neural Text Degeneration, arXiv:1904.09751, section 3.1.
Departures: none; the order temperature, top_k, top_p is that of transformers. `logp` is under the model's own
            distribution (temperature 1, nothing cut off).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.method import LuthierError
from luthier.decoding._family import Row, StepDecoder, certain, draw, nucleus_probability


@dataclass(frozen=True)
class Nucleus(StepDecoder):
    paper: ClassVar[str] = "arXiv:1904.09751"
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise LuthierError("nucleus needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0")

    def rule(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        return scores.argmax(-1) if self.temperature == 0 else draw(self.probability(scores), rows)

    def probability(self, scores: Tensor) -> Tensor:
        if self.temperature == 0:
            return certain(scores)
        return nucleus_probability(scores, self.temperature, self.top_p, self.top_k)
