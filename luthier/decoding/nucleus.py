"""Nucleus sampling: draw from the likeliest tokens that together hold a share of the probability.

    p = softmax(z / temperature);   keep the top_k likeliest;   renormalise;
    keep the smallest set of likeliest tokens whose mass reaches top_p;   renormalise;   y ~ p          p (B, V)

    temperature  0 is greedy, 1 the model's own distribution
    top_p        1 keeps every token
    top_k        0 keeps every token
Random state: one number per row and step from (seed, prompt, copy of that prompt): a row alone draws what it draws in
a
            batch, and n copies of a prompt are n different samples.
Cost:       a sort of V per step and row where top_p < 1.
Paper:      Holtzman et al., 2020, The Curious Case of Neural Text Degeneration, arXiv:1904.09751, section 3.1.
Departures: none; the order temperature, top_k, top_p is that of transformers. `logp` is under the model's own
            distribution (temperature 1, nothing cut off).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.method import LuthierError
from luthier.decoding._family import Row, StepDecoder


def nucleus_probability(scores: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The distribution (B, V) float64 that is drawn from. `temperature` > 0."""
    p = (scores.double() / temperature).softmax(-1)
    if top_k and top_k < p.shape[-1]:
        p = p.masked_fill(p < p.topk(top_k, -1).values[:, -1:], 0.0)
        p = p / p.sum(-1, keepdim=True)
    if top_p < 1:
        ranked, order = p.sort(-1, descending=True)  # (B, V)
        before = ranked.cumsum(-1) - ranked
        dropped = (before >= top_p).scatter(-1, order, before >= top_p)
        p = p.masked_fill(dropped, 0.0)
    return p / p.sum(-1, keepdim=True)


def draw(p: Tensor, rows: Sequence[Row]) -> Tensor:
    """One token (B,) per row by the inverse of the distribution function, with each row's own random number."""
    at = torch.tensor([[row.uniform()] for row in rows], dtype=p.dtype, device=p.device)
    below = p.cumsum(-1)
    token = torch.searchsorted(below, at * below[:, -1:], right=True)[:, 0]
    return token.clamp(max=p.shape[-1] - 1)


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
        if self.temperature == 0:
            return scores.argmax(-1)
        return draw(nucleus_probability(scores, self.temperature, self.top_p, self.top_k), rows)
