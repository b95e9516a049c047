"""FIRST: make the model's distribution that of a teacher on the teacher's k likeliest tokens, after these were re-calibrated.

    loss = sum_n [ sum_j P'_j (log P'_j - log q_j) + r (log r - log(1 - sum_j q_j)) ] / N          N scored tokens of the step

    P (k,)  the teacher's probabilities of its k likeliest tokens, stored once (core/teacher.py);  m = sum_j P_j;  r = 1 - m
    q (k,)  the model's probabilities of the same tokens
    P'      what `calibration` makes of P, scaled so that it sums to m
      none          P
      smoothing     d = c off the largest, d / (k - 1) onto each other one
      temperature   m softmax(log P / c)
      probabilities m softmax(P / c): c lives around 0.1 to 0.5, as P lies between 0 and 1
    support tail    as above: all other tokens are one more
            renorm  P' / m against q / sum_j q_j, no bucket: what the model gives to other tokens is free
            softmax P' / m against softmax(q / c_student)

    teacher  a model, folder or run, or a file of what one said (recipes/first writes one); the tokenizer must be the model's
Start:      0 and no gradient where the model is the re-calibrated teacher. Never below 0.
Cost:       that of sft, and 6 k bytes a token on disk and in memory; no teacher beside. It is asked once, before the first step.
Paper:      Shum et al., 2024, "FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy Distillation",
            arXiv:2408.12168, section 3.
Departures: `tail` by default, with which P' keeps the captured mass m. Smoothing stops just before the largest is equal to the
            second, so P' keeps order and sum and needs no clamp. A mean over tokens, not over rows. With k = V there is no
            bucket. The default is no calibration: c is a choice to be made on held-out rows, which recipes/first makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Columns, Scorer
from luthier.core.method import LuthierError
from luthier.objectives._family import TokenObjective

CLOSEST = 0.99
"""Share of the way to equality that smoothing may go: at equality, rounding would choose the answer."""


@dataclass(frozen=True)
class FIRST(TokenObjective):
    paper: ClassVar[str] = "arXiv:2408.12168"
    cards: ClassVar[tuple[int, ...]] = (15,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")
    reference: ClassVar[str] = "top"

    teacher: str | dict[str, Any]  # type: ignore[misc]
    k: int = 5  # type: ignore[misc]
    calibration: Literal["none", "smoothing", "temperature", "probabilities"] = "none"
    c: float = 1.0
    support: Literal["tail", "renorm", "softmax"] = "tail"
    c_student: float = 1.0

    def __post_init__(self) -> None:
        if not self.teacher:
            raise LuthierError(
                "objective.teacher is missing: name a model, a run folder or a hub id, or a file that recipes/first wrote"
            )
        if self.k < 2:
            raise LuthierError(
                f"objective: k {self.k} must be at least 2: one token alone has nothing to be calibrated"
            )
        if self.c_student <= 0 or self.c < 0 or (self.c == 0 and self.calibration != "smoothing"):
            raise LuthierError(f"objective: c {self.c} and c_student {self.c_student} must be positive")

    @classmethod
    def example(cls) -> Self:
        return cls(teacher="nano-1m")

    def losses(self, scorer: Scorer, batch: Batch) -> Tensor:
        if batch.top_ids is None or batch.top_logp is None:
            raise LuthierError(
                f"objective '{self.name}' needs what a teacher said of these rows, and nothing was stored"
            )
        return scorer.read(batch, self.distance, batch.top_ids, batch.top_logp)[0]

    def calibrated(self, logp: Tensor) -> Tensor:
        """log P' (n, k) from log P (n, k). It sums to what P sums to."""
        if self.calibration == "none":
            return logp
        m = logp.logsumexp(-1, keepdim=True)
        if self.calibration == "temperature":
            return (logp / self.c).log_softmax(-1) + m
        if self.calibration == "probabilities":
            return (logp.exp() / self.c).log_softmax(-1) + m
        P, k = logp.exp(), logp.shape[-1]
        first, second = P.topk(2, -1).values.split(1, -1)
        d = (CLOSEST * (first - second) * (k - 1) / k).clamp(max=self.c)
        moved = torch.full_like(P, 1 / (k - 1)).scatter(-1, P.argmax(-1, keepdim=True), -1.0)
        return (P + d * moved).log()

    def distance(self, logits: Tensor, target: Tensor, ids: Tensor, logp: Tensor) -> Columns:
        """Loss (n,) at each position from the model's logits (n, V) and the teacher's tokens and log-probabilities (n, k)."""
        p = self.calibrated(logp.to(logits))
        m = p.logsumexp(-1, keepdim=True)
        inside = logits.gather(1, ids)  # (n, k)
        if self.support == "tail" and ids.shape[1] < logits.shape[1]:
            total = logits.logsumexp(-1, keepdim=True)
            outside = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - total[:, 0]
            r = -torch.expm1(m[:, 0].clamp(max=0))  # stored in half precision, P may sum to a little more than 1
            return ((p.exp() * (p - inside + total)).sum(-1) + torch.xlogy(r, r) - r * outside,)
        if self.support == "softmax":
            q = (logits.log_softmax(-1).gather(1, ids).exp() / self.c_student).log_softmax(-1)
        else:
            q = inside.log_softmax(-1)
        p = p - m
        return ((p.exp() * (p - q)).sum(-1),)
