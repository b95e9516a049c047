"""Regression: predicted numbers against true ones.

    pearson  = cov(x, y) / (sd(x) sd(y))      spearman = pearson of the ranks (ties share their mean rank)
    rmse     = sqrt(mean (x - y)^2)           x predictions, y truth, both (n,)

A head with one output gives the prediction; a language model says it, and the last number of its text counts. A text
without a number counts as the mean of the truth, which is worth nothing; `answered` is the share with a number.
Cost:       one forward (head) or one generation per item.
Paper:      none; scipy is the oracle of the tests.
Departures: none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError, Refusal
from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, need, weighted_mean

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Regression(Scorer):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    metrics: ClassVar[dict[str, bool]] = {"pearson": True, "spearman": True, "rmse": False, "answered": True}
    proportions: ClassVar[frozenset[str]] = frozenset({"answered"})
    sample: ClassVar[str] = "error"
    max_new_tokens: int = 12
    stop: tuple[str, ...] = ()

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        truth = np.array([_truth(i) for i in items])
        if subject.task == "classification":
            need(items, "text", self.name)
            found_all = subject.class_probabilities([i.text for i in items])
            if found_all.shape[1] != 1:
                raise Refusal(f"{self.name} reads a head with one output, this one has {found_all.shape[1]}")
            said = found_all[:, 0].astype(float)
            outputs = [f"{x:.4g}" for x in said]
        else:
            need(items, "prompt", self.name)
            outputs = subject.generate([i.prompt for i in items], self.max_new_tokens, self.stop)
            found = [_NUMBER.findall(o.replace(",", "")) for o in outputs]
            said = np.array([float(f[-1]) if f else np.nan for f in found])
        answered = np.isfinite(said)
        said = np.where(answered, said, truth.mean())
        stats = {"said": said, "truth": truth, "answered": answered, "error": np.abs(said - truth)}
        answers = self.answers(items, stats, outputs)
        answers.references = [f"{x:g}" for x in truth]
        return answers

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        return {
            "pearson": lambda stats, w: _pearson(stats["said"][None], stats["truth"][None], w),
            "spearman": lambda stats, w: _pearson(_ranks(stats["said"], w), _ranks(stats["truth"], w), w),
            "rmse": lambda stats, w: np.sqrt(weighted_mean((stats["said"] - stats["truth"]) ** 2, w)),
            "answered": lambda stats, w: weighted_mean(stats["answered"], w),
        }[metric]


def _truth(item: Item) -> float:
    value: Any = item.label if item.label is not None else item.reference
    try:
        return float(value)
    except (TypeError, ValueError):
        raise LuthierError(f"row {item.id}: {value!r} is not a number") from None


def _pearson(x: NDArray, y: NDArray, w: NDArray) -> NDArray:
    """Weighted correlation (R,) of x and y, (1, n) or (R, n). nan where one of them is constant."""
    total = w.sum(1, keepdims=True)
    x = x - (w * x).sum(1, keepdims=True) / total
    y = y - (w * y).sum(1, keepdims=True) / total
    scale = np.sqrt((w * x * x).sum(1) * (w * y * y).sum(1))
    return np.divide((w * x * y).sum(1), scale, out=np.full(len(w), np.nan), where=scale > 1e-12)


def _ranks(values: NDArray, w: NDArray) -> NDArray:
    """(R, n) mean ranks of the items, each standing there as often as its weight says."""
    _, group = np.unique(values, return_inverse=True)
    mass = w @ np.eye(group.max() + 1)[group]  # (R, groups)
    return (mass.cumsum(1) - mass / 2)[:, group]
