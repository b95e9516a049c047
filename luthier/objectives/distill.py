"""Distill: make the model's distribution at every token that counts that of a teacher, asked live.

    forward    KL(p || q) = sum_v p(v) (log p(v) - log q(v))                covers all that the teacher finds likely
    reverse    KL(q || p)                                                   keeps to what the teacher finds likely
    jsd        beta KL(p || m) + (1 - beta) KL(q || m),    m = beta p + (1 - beta) q
    loss       t^2 sum_n divergence(n) / N

    p, q         softmax of the teacher's and of the model's logits over t, (V,) each       N scored tokens of the whole step
    teacher      a model, folder or run, as `luthier.load` takes it, or a mapping of model settings; its tokenizer must be the
                 model's. Tokens that one of the two does not have count for neither
    temperature  t; t^2 keeps gradients as large as at t = 1
Start:      0, and no gradient, where model and teacher are the same.
Cost:       the teacher beside the model, a forward pass of it at every step. Logits of both exist in chunks of positions alone.
            objectives/first stores what the teacher says instead.
Paper:      Hinton et al., 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2; jsd: Agarwal et
            al., 2024, "On-Policy Distillation of Language Models", arXiv:2306.13649, section 2.
Departures: the targets of the rows' own tokens enter by `mixed`, with sft as its other part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Columns, Scorer, kl
from luthier.core.method import LuthierError
from luthier.objectives._family import TokenObjective


@dataclass(frozen=True)
class Distill(TokenObjective):
    paper: ClassVar[str] = "arXiv:2306.13649"
    cards: ClassVar[tuple[int, ...]] = (15,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")
    reference: ClassVar[str] = "model"

    teacher: str | dict[str, Any]  # type: ignore[misc]
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.teacher:
            raise LuthierError("objective.teacher is missing: name a model, a run folder or a hub id")
        if not 0 < self.beta < 1:
            raise LuthierError(
                f"objective: beta {self.beta} must lie between 0 and 1: for its limits use forward or reverse"
            )
        if self.temperature <= 0:
            raise LuthierError(f"objective: temperature {self.temperature} must be positive")

    @classmethod
    def example(cls) -> Self:
        return cls(teacher="nano-1m")

    def losses(self, scorer: Scorer, batch: Batch) -> Tensor:
        return scorer.compare(batch, self.distance)[0]

    def distance(self, logits: Tensor, teacher: Tensor, target: Tensor) -> Columns:
        """Loss (n,) at each position from logits (n, V) of both models."""
        q, p = ((z / self.temperature).log_softmax(-1) for z in (logits, teacher))
        if self.divergence == "forward":
            found = kl(p, q)
        elif self.divergence == "reverse":
            found = kl(q, p)
        else:
            m = torch.logaddexp(p + math.log(self.beta), q + math.log(1 - self.beta))
            found = self.beta * kl(p, m) + (1 - self.beta) * kl(q, m)
        return (self.temperature**2 * found,)
