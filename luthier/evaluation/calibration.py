"""Calibration: whether confidence tells how often a model is right.

    ece      = sum_m (n_m / n) |accuracy_m - confidence_m|     M bins of equal width (low, high], 1.0 in the top one
    ece_mass = the same with M bins of equal count
    brier    = mean_i sum_c (p_ic - [c = gold_i])^2                 p (n, C)
    nll      = - mean_i log p_i,gold
    trust    = accuracy - ece

Confidence is the probability of the chosen class: of a class head, or of the choices of a question (or `labels`),
whose probabilities a language model renormalises over the choices. ECE depends on M, which is stated with the task,
and has a positive bias in small samples: compare values at the same n only.
Cost:       one forward per item (head) or per item and choice.
Paper:      Guo et al., 2017, arXiv:1706.04599, eq. 3; Nixon et al., 2019, arXiv:1904.01685 (equal count);
            trust: Shum et al., 2024, arXiv:2408.12168.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import (
    Aggregate,
    Answers,
    Item,
    Scorer,
    choice_logp,
    class_scores,
    right_choice,
    softmax,
    weighted_mean,
)


@dataclass(frozen=True)
class Calibration(Scorer):
    paper: ClassVar[str] = "arXiv:1706.04599"
    cards: ClassVar[tuple[int, ...]] = (15, 25)
    metrics: ClassVar[dict[str, bool]] = {
        "ece": False,
        "ece_mass": False,
        "brier": False,
        "nll": False,
        "accuracy": True,
        "trust": True,
    }
    proportions: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    units: ClassVar[dict[str, str]] = {"nll": "nats"}
    sample: ClassVar[str] = "confidence"
    bins: int = 10
    labels: tuple[str, ...] = ()
    delimiter: str = " "

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise LuthierError("calibration needs at least one bin")

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        if subject.task != "classification" and all(i.choices for i in items):
            p = [softmax(s) for s in choice_logp(subject, items, self.delimiter)]
            gold = [right_choice(i) for i in items]
            names = [i.choices or () for i in items]
        else:
            table, classes, gold = class_scores(subject, items, self.labels, self.delimiter)
            p, names = list(table), [tuple(classes)] * len(items)
        said = [int(row.argmax()) for row in p]
        answers = self.answers(items, calibration_stats(p, gold), [n[s] for n, s in zip(names, said, strict=True)])
        answers.references = [n[g] for n, g in zip(names, gold, strict=True)]
        return answers

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if metric == "ece":
            return lambda stats, w: equal_width(stats, w, self.bins)
        if metric == "ece_mass":
            return lambda stats, w: equal_count(stats, w, self.bins)
        if metric == "trust":
            return lambda stats, w: weighted_mean(stats["accuracy"], w) - equal_width(stats, w, self.bins)
        return super().aggregate(metric, answers)

    def details(self, answers: Answers) -> dict[str, Any]:
        every = np.ones((1, len(answers)))
        return {
            "bins": reliability(answers.stats, self.bins),
            "ece": float(equal_width(answers.stats, every, self.bins)[0]),
        }


def calibration_stats(p: Sequence[NDArray], gold: Sequence[int]) -> dict[str, list[float]]:
    """Statistics of each item from its class probabilities."""
    rows = []
    for row, g in zip(p, gold, strict=True):
        chosen, truth = int(row.argmax()), np.eye(len(row))[g]
        nll = -np.log(max(float(row[g]), 1e-12))
        rows.append((float(row[chosen]), float(chosen == g), float(((row - truth) ** 2).sum()), nll))
    return dict(zip(("confidence", "accuracy", "brier", "nll"), map(list, zip(*rows, strict=True)), strict=True))


def bin_of(confidence: NDArray, bins: int) -> NDArray:
    """Index of the bin (low, high]; 1.0 is in the top bin, 0.0 in the lowest."""
    return np.clip(np.ceil(np.round(confidence * bins, 9)) - 1, 0, bins - 1).astype(int)


def equal_width(stats: dict[str, NDArray], w: NDArray, bins: int) -> NDArray:
    """ECE (R,): |sum of (accuracy - confidence)| in each bin, over the weight of all."""
    where = np.eye(bins)[bin_of(stats["confidence"], bins)]  # (n, M)
    gap = (stats["accuracy"] - stats["confidence"])[:, None] * where
    return np.abs(w @ gap).sum(1) / w.sum(1)


def equal_count(stats: dict[str, NDArray], w: NDArray, bins: int) -> NDArray:
    """ECE (R,) with bins that hold the same weight, in order of confidence."""
    order = np.argsort(stats["confidence"], kind="stable")
    w = w[:, order]
    gap = w * (stats["accuracy"] - stats["confidence"])[order]
    middle = (w.cumsum(1) - w / 2) / w.sum(1, keepdims=True)
    where = np.minimum((middle * bins).astype(int), bins - 1)
    total = sum(np.abs(np.where(where == m, gap, 0).sum(1)) for m in range(bins))
    return total / w.sum(1)


def reliability(stats: dict[str, NDArray], bins: int) -> list[dict[str, float]]:
    """What a reliability diagram draws; bins without items are left out."""
    where = bin_of(stats["confidence"], bins)
    out = []
    for m in range(bins):
        inside = where == m
        if inside.any():
            out.append({
                "low": m / bins, "high": (m + 1) / bins, "confidence": float(stats["confidence"][inside].mean()),
                "accuracy": float(stats["accuracy"][inside].mean()), "count": int(inside.sum()),
            })  # fmt: skip
    return out
