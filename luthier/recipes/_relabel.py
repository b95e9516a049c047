"""Labels that models say: which training rows are labelled unlike the rest, and labels for rows that have none.

p_i       (C,) what a model that never saw row i, nor its text, says of it (out of fold)
t_c       mean of p_i(c) over the rows labelled c: how sure such a model is of class c where it is right to be
suspect   row i with label y where c = argmax p_i, c != y, p_i(c) >= t_c
target    (1 - rho) onehot(y) + rho p_i of suspect rows, onehot(y) of the others

pseudo    rows without label where max p >= threshold; of class c at most m pi_c, the surest first, with pi the classes'
          shares of the training rows and m the largest number for which every class has its share
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.core.batch import LabelledExample


def folds(examples: Sequence[LabelledExample], k: int, seed: int) -> list[list[int]]:
    """Indices of k parts. Rows of one text are in one part."""
    same: dict[tuple[int, ...], list[int]] = {}
    for i, e in enumerate(examples):
        same.setdefault(tuple(e.ids), []).append(i)
    groups = list(same.values())
    random.Random(f"{seed}/folds").shuffle(groups)
    parts: list[list[int]] = [[] for _ in range(k)]
    for group in groups:
        min(parts, key=len).extend(group)
    return [sorted(part) for part in parts]


def out_of_fold(
    examples: Sequence[LabelledExample],
    parts: Sequence[Sequence[int]],
    says: Callable[[list[LabelledExample], list[LabelledExample]], np.ndarray],
) -> np.ndarray:
    """(n, C): `says(rows to train on, rows to judge)` of each part by a model trained on the others."""
    found: list[tuple[Sequence[int], np.ndarray]] = []
    for part in parts:
        own = set(part)
        rest = [e for i, e in enumerate(examples) if i not in own]
        found.append((part, says(rest, [examples[i] for i in part])))
    out = np.zeros((len(examples), found[0][1].shape[1]))
    for part, p in found:
        out[list(part)] = p
    return out


def suspects(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) whether a row's label is doubted. A class without a row doubts nothing."""
    sure = np.array([p[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(p.shape[1])])
    said = p.argmax(1)
    return (said != labels) & (p[np.arange(len(p)), said] >= sure[said])


def targets(p: np.ndarray, labels: np.ndarray, doubted: np.ndarray, rho: float) -> np.ndarray:
    """(n, C) shares of the classes."""
    own = np.eye(p.shape[1])[labels]
    return np.where(doubted[:, None], (1 - rho) * own + rho * p, own)


def confident(p: np.ndarray, shares: np.ndarray, threshold: float) -> list[int]:
    """Rows that get the label argmax p, in order."""
    said, sure = p.argmax(1), p.max(1)
    of_class = [np.flatnonzero((said == c) & (sure >= threshold)) for c in range(p.shape[1])]
    m = min(len(rows) / share for rows, share in zip(of_class, shares, strict=True) if share > 0)
    kept = [
        rows[np.argsort(-sure[rows], kind="stable")[: int(m * share + 1e-9)]]
        for rows, share in zip(of_class, shares, strict=True)
    ]
    return sorted(int(i) for rows in kept for i in rows)


def with_targets(examples: Sequence[LabelledExample], found: np.ndarray) -> list[LabelledExample]:
    return [replace(e, extras={**e.extras, "target": t.tolist()}) for e, t in zip(examples, found, strict=True)]


def joined(
    examples: Sequence[LabelledExample], unlabelled: Sequence[LabelledExample], p: np.ndarray, kept: Sequence[int],
    share: float,
) -> list[LabelledExample]:  # fmt: skip
    """Training rows and, after them, the kept rows under the label that p says, each counting as `share` of a row."""
    like = examples[0].extras
    first = 1 + max(e.row for e in examples)
    extra = []
    for i in kept:
        said: dict[str, Any] = dict.fromkeys(like) | {"share": share}
        label = int(p[i].argmax())
        if "target" in like:
            said["target"] = np.eye(p.shape[1])[label].tolist()
        extra.append(replace(unlabelled[i], row=first + i, label=label, extras=said))
    return [replace(e, extras={**e.extras, "share": 1.0}) for e in examples] + extra
