"""Drift: how far tuning moved the model's distribution on text that has nothing to do with the task.

    kl  = mean_t sum_v p_t(v) log( p_t(v) / q_t(v) )        p base, q tuned, over all positions t of all texts
    tv  = mean_t 1/2 sum_v | p_t(v) - q_t(v) |
    top1_agreement = share of positions with argmax p_t = argmax q_t

    keep       tokens per position that are remembered of the base; 0: all of them
    tolerated  kl (nats per position) up to which a change is called the same
The base is asked first and is remembered by its `keep` likeliest tokens, the rest in one bucket, because it may be
gone when the tuned model is measured. Buckets can only hide divergence: the values are lower bounds, exact for keep=0
and where keep is at least the vocabulary.
Test:       none: a distance has no sign, and any change at all would be significant. `tolerated` decides.
Cost:       one forward per text and model.
Paper:      forward KL to the base as in Shenfeld et al., 2025, arXiv:2509.04259 (forgetting grows with it).
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, need, shown


class _Remembered(NamedTuple):
    """The base on one text: likeliest tokens (T, k) and their log-probabilities (T, k); no ids: all tokens in order."""

    ids: Tensor | None
    logp: Tensor


@dataclass(frozen=True)
class Drift(Scorer):
    paper: ClassVar[str] = "arXiv:2509.04259"
    cards: ClassVar[tuple[int, ...]] = (9, 32, 57)
    metrics: ClassVar[dict[str, bool]] = {"kl": False, "tv": False, "top1_agreement": True}
    units: ClassVar[dict[str, str]] = {"kl": "nats"}
    keep: int = 256
    tolerated: float = 0.01

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        texts = [_text(i) for i in items]
        if base is None:
            kept = remember(subject, texts, self.keep)
            rows = [(0.0, 0.0, float(len(k.logp)), float(len(k.logp))) for k in kept]
            return self._answers(items, rows, kept)
        if base.keep is None:
            raise LuthierError(f"{self.name}: the base was measured without its distributions: measure it again")
        rows = [(0.0,) * 4] * len(texts)
        for i, logq in subject.distributions(texts):
            rows[i] = distance(base.keep[i], logq)
        return self._answers(items, rows, None)

    def _answers(
        self, items: Sequence[Item], rows: Sequence[tuple[float, ...]], keep: list[_Remembered] | None
    ) -> Answers:
        table = np.array(rows).reshape(-1, 4)
        stats = dict(zip(("kl", "tv", "top1_agreement", "positions"), table.T, strict=True))
        stats["kl_per_token"] = stats["kl"] / np.maximum(1, stats["positions"])
        return self.answers(items, stats, [f"{x:.4f} nats" for x in stats["kl_per_token"]], keep=keep)

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return False

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        return lambda stats, w: (w @ stats[metric]) / np.maximum(w @ stats["positions"], 1)

    def verdict(self, metric: str, low: float, high: float) -> str:
        if metric == "top1_agreement":
            low, high = -high, -low
        return "worse" if low > self.tolerated else "same"


def _text(item: Item) -> str:
    """The item's text, or its prompt with its reference."""
    if isinstance(item.text, str):
        return item.text
    if item.prompt is None:
        need([item], "text", "drift")
    return shown(item.prompt) + str(item.row.get("completion") or item.reference or "")


def remember(subject: Subject, texts: Sequence[str], keep: int) -> list[_Remembered]:
    """The base's distributions, cut to their `keep` likeliest tokens."""
    kept: list[_Remembered | None] = [None] * len(texts)
    for i, logp in subject.distributions(texts):
        if not keep or keep >= logp.shape[-1]:
            kept[i] = _Remembered(None, logp.cpu())
        else:
            top = logp.topk(keep, -1)
            kept[i] = _Remembered(top.indices.int().cpu(), top.values.cpu())
    return kept  # type: ignore[return-value]


def distance(base: _Remembered, logq: Tensor) -> tuple[float, float, float, float]:
    """Sums over the positions of one text: kl, tv, agreements, positions."""
    logp = base.logp.to(logq.device)
    if base.ids is None:
        p, q, logqs = logp.exp(), logq.exp(), logq
        best = logp.argmax(-1)
    else:
        ids = base.ids.long().to(logq.device)
        logqs, best = logq.gather(1, ids), ids[:, 0]
        p, q = logp.exp(), logqs.exp()
    if p.shape != q.shape:
        raise LuthierError("the tuned model reads the text as other tokens than the base: drift needs one tokenizer")
    kl = torch.where(p > 0, p * (logp - logqs), 0.0).sum(-1)
    tv = (p - q).abs().sum(-1)
    if base.ids is not None:
        rest_p, rest_q = (1 - p.sum(-1)).clamp(min=1e-9), (1 - q.sum(-1)).clamp(min=1e-9)
        kl, tv = kl + rest_p * (rest_p / rest_q).log(), tv + (rest_p - rest_q).abs()
    agree = (best == logq.argmax(-1)).sum()
    return float(kl.clamp(min=0).sum()), float(tv.sum() / 2), float(agree), float(len(p))
