"""What scorers of label sets share: gold and predicted sets of labels, and the metrics of several labels at once.

    TP_l, FP_l, FN_l   of label l over the items                  G_i, S_i   gold and said labels of item i

    F1_l = 2 TP / (2 TP + FP + FN)      macro: mean over labels; micro: of the sums
    Jaccard_l = TP / (TP + FP + FN)     macro, micro, weighted by how often l is gold; samples: mean |G n S| / |G u S|
    exact = [G_i = S_i]                 predicted = |S_i|

Labels that occur neither in gold nor in what was said do not count in a mean; two empty sets agree (1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, head_names, items_of, need, weighted_mean

__all__ = [
    "Answers", "Item", "LabelSets", "LuthierError", "NDArray", "Subject", "gold_labels", "head_names", "labelled_items",
    "need",
]  # fmt: skip


def gold_labels(items: Sequence[Item]) -> list[tuple[str, ...]]:
    """The right labels of every item: column `labels`, or the one `label` (or reference)."""
    found = []
    for item in items:
        told = item.row.get("labels")
        if told is None:
            told = item.label if item.label is not None else item.reference
        if told is None:
            raise LuthierError(f"row {item.id} has no labels (columns: {', '.join(sorted(item.row))})")
        several = told if isinstance(told, list | tuple) else [told]
        found.append(tuple(dict.fromkeys(str(label).strip() for label in several)))
    return found


def labelled_items(source: Any) -> list[Item]:
    """Rows that a scorer learns from: rows, or a source that `luthier.data.read` reads."""
    from luthier.data import read

    given = isinstance(source, list | tuple) and all(isinstance(r, dict) for r in source)
    return items_of(list(source) if given else list(read(source).rows))


class LabelSets(Scorer):
    """Base of scorers that say a set of labels of every item; a method gives the sets to `sets`."""

    metrics: ClassVar[dict[str, bool]] = {
        "macro_f1": True, "micro_f1": True, "exact": True, "jaccard_samples": True, "jaccard_macro": True,
        "jaccard_micro": True, "jaccard_weighted": True,
    }  # fmt: skip
    proportions: ClassVar[frozenset[str]] = frozenset({"exact"})
    sample: ClassVar[str] = "jaccard_samples"

    def sets(
        self, items: Sequence[Item], gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]], names: Sequence[str],
        **more: Any,
    ) -> Answers:  # fmt: skip
        """Answers from the sets; `names` are the labels that count, what is said beyond them is a wrong label each."""
        G, S = _marks(gold, names), _marks(said, names)
        beyond = np.array([len(set(s) - set(names)) for s in said], dtype=float)
        both, either = (G & S).sum(1), (G | S).sum(1) + beyond
        stats: dict[str, Any] = {
            "exact": (G == S).all(1) & (beyond == 0),
            "jaccard_samples": np.divide(both, either, out=np.ones(len(G)), where=either > 0),
            "predicted": S.sum(1) + beyond, "true": G.sum(1), "beyond": beyond,
        }  # fmt: skip
        stats |= {f"gold:{n}": G[:, j] for j, n in enumerate(names)}
        stats |= {f"said:{n}": S[:, j] for j, n in enumerate(names)}
        found = self.answers(
            items, stats | more.pop("stats", {}), ["; ".join(s) for s in said], names=list(names), **more
        )
        found.references = ["; ".join(g) for g in gold]
        found.floors = _always(gold, names)
        return found

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**self.metrics, **{f"f1_{name}": True for name in answers.names}}

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return metric in ("exact", "jaccard_samples")

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        names = answers.names
        if metric.startswith("f1_"):
            return lambda stats, w: _f1(*_counts(stats, w, [metric.removeprefix("f1_")]))[:, 0]
        if self.decomposes(metric, answers):
            return lambda stats, w: weighted_mean(stats[metric], w)
        return lambda stats, w: _FORMULAS[metric](*_counts(stats, w, names), w @ stats["beyond"])

    def details(self, answers: Answers) -> dict[str, Any]:
        """Precision, recall and frequency of every label, and how many labels were said."""
        tp, fp, fn = (c[0] for c in _counts(answers.stats, np.ones((1, len(answers))), answers.names))
        labels = {
            n: {"precision": _share(a, a + b), "recall": _share(a, a + c), "count": int(a + c)}
            for n, a, b, c in zip(answers.names, tp, fp, fn, strict=True)
        }
        number = {k: float(answers.stats[k].mean()) for k in ("predicted", "true", "beyond")}
        return {"labels": labels, "labels per item": number}


def _marks(sets: Sequence[Sequence[str]], names: Sequence[str]) -> NDArray:
    """(n, L) bool."""
    return np.array([[n in s for n in names] for s in map(set, sets)], dtype=bool).reshape(len(sets), len(names))


def _counts(stats: dict[str, NDArray], w: NDArray, names: Sequence[str]) -> tuple[NDArray, NDArray, NDArray]:
    """Weighted TP, FP, FN, each (R, L)."""
    G = np.stack([stats[f"gold:{n}"] for n in names], 1)
    S = np.stack([stats[f"said:{n}"] for n in names], 1)
    return w @ (G * S), w @ ((1 - G) * S), w @ (G * (1 - S))


def _share(part: NDArray, whole: NDArray) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _ratio(part: NDArray, whole: NDArray) -> NDArray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _f1(tp: NDArray, fp: NDArray, fn: NDArray) -> NDArray:
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _jaccard(tp: NDArray, fp: NDArray, fn: NDArray) -> NDArray:
    return _ratio(tp, tp + fp + fn)


def _mean(values: NDArray, weights: NDArray | None = None) -> NDArray:
    """(R,) over the labels that occur."""
    known = np.isfinite(values)
    weights = known.astype(float) if weights is None else weights * known
    return _ratio((np.where(known, values, 0) * weights).sum(1), weights.sum(1))


def _micro(tp: NDArray, fp: NDArray, fn: NDArray, beyond: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    return tp.sum(1), fp.sum(1) + beyond, fn.sum(1)


_FORMULAS = {
    "macro_f1": lambda tp, fp, fn, beyond: _mean(_f1(tp, fp, fn)),
    "micro_f1": lambda tp, fp, fn, beyond: _f1(*_micro(tp, fp, fn, beyond)),
    "jaccard_macro": lambda tp, fp, fn, beyond: _mean(_jaccard(tp, fp, fn)),
    "jaccard_micro": lambda tp, fp, fn, beyond: _jaccard(*_micro(tp, fp, fn, beyond)),
    "jaccard_weighted": lambda tp, fp, fn, beyond: _mean(_jaccard(tp, fp, fn), tp + fn),
}


def _always(gold: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, float]:
    """Macro-F1 of saying always the most frequent label."""
    if not gold or not names:
        return {}
    counts = {n: sum(n in g for g in gold) for n in names}
    often = max(counts, key=lambda n: (counts[n], n))
    seen = sum(c > 0 for c in counts.values())
    f1 = 2 * counts[often] / (counts[often] + len(gold))
    return {f"always '{often}'": f1 / max(1, seen)}
