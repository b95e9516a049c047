"""Classification: one class out of several, from a class head or from verbalised labels ranked by a language model.

    confusion M (C, C), rows gold:
    accuracy = tr M / n                     balanced_accuracy = mean_c M_cc / M_c.
    F1_c     = 2 M_cc / (M_c. + M_.c)       macro_f1 = mean_c F1_c,    micro_f1 = accuracy (one label each)
    mcc      = (n tr M - sum_c M_c. M_.c) / sqrt((n^2 - sum M_c.^2) (n^2 - sum M_.c^2))

    labels     class names to rank, for language models; by default the labels that occur in the data
    delimiter  between prompt and label
Classes that occur neither as gold nor as prediction do not count in a mean. All but accuracy are functions of the
whole confusion matrix: intervals and tests recompute them.
Chance:     always the most frequent class.
Cost:       one forward per item (head) or per item and label (language model).
Paper:      MCC of several classes: Gorodkin, 2004. Definitions as in scikit-learn, the oracle of the tests.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, class_scores


@dataclass(frozen=True)
class Classification(Scorer):
    paper: ClassVar[str] = "Gorodkin, 2004"
    cards: ClassVar[tuple[int, ...]] = (15, 24, 33)
    metrics: ClassVar[dict[str, bool]] = {
        "accuracy": True, "macro_f1": True, "micro_f1": True, "mcc": True, "balanced_accuracy": True,
    }  # fmt: skip
    proportions: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    sample: ClassVar[str] = "accuracy"
    labels: tuple[str, ...] = ()
    delimiter: str = " "

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        p, names, gold = class_scores(subject, items, self.labels, self.delimiter)
        said = p.argmax(-1)
        stats = {"accuracy": said == np.array(gold), "gold": gold, "said": said}
        most = int(np.bincount(gold).argmax())
        floors = {f"always '{names[most]}'": float(np.mean(np.array(gold) == most))}
        found = self.answers(items, stats, [names[s] for s in said], names=names, floors=floors)
        found.references = [names[g] for g in gold]
        return found

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**self.metrics, **{f"f1_{name}": True for name in answers.names}}

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return metric == "accuracy"

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        C = len(answers.names)
        if metric.startswith("f1_"):
            which = answers.names.index(metric.removeprefix("f1_"))
            return lambda stats, w: _f1(confusion(stats, w, C))[:, which]
        return lambda stats, w: _FORMULAS[metric](confusion(stats, w, C))


def confusion(stats: dict[str, NDArray], weights: NDArray, C: int) -> NDArray:
    """(R, C, C) weighted counts, gold by prediction."""
    cell = (stats["gold"] * C + stats["said"]).astype(int)
    used, compact = np.unique(cell, return_inverse=True)
    counts = np.zeros((len(weights), C * C))
    counts[:, used] = weights @ np.eye(len(used))[compact]
    return counts.reshape(-1, C, C)


def _f1(M: NDArray) -> NDArray:
    """(R, C); nan for a class that does not occur."""
    seen = M.sum(1) + M.sum(2)
    return np.divide(2 * np.diagonal(M, axis1=1, axis2=2), seen, out=np.full(seen.shape, np.nan), where=seen > 0)


def _mean_of_known(values: NDArray) -> NDArray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1)


def _balanced(M: NDArray) -> NDArray:
    gold = M.sum(2)
    hit = np.diagonal(M, axis1=1, axis2=2)
    return _mean_of_known(np.divide(hit, gold, out=np.full(gold.shape, np.nan), where=gold > 0))


def _mcc(M: NDArray) -> NDArray:
    n, hit, gold, said = M.sum((1, 2)), np.trace(M, axis1=1, axis2=2), M.sum(2), M.sum(1)
    scale = np.sqrt((n**2 - (gold**2).sum(1)) * (n**2 - (said**2).sum(1)))
    return np.divide(n * hit - (gold * said).sum(1), scale, out=np.zeros(len(n)), where=scale > 0)


def _accuracy(M: NDArray) -> NDArray:
    return np.trace(M, axis1=1, axis2=2) / M.sum((1, 2))


_FORMULAS = {
    "accuracy": _accuracy,
    "micro_f1": _accuracy,
    "macro_f1": lambda M: _mean_of_known(_f1(M)),
    "mcc": _mcc,
    "balanced_accuracy": _balanced,
}
