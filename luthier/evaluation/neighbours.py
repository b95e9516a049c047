"""Neighbours: labels by the vote of the nearest training texts, in a model's own, frozen embeddings or by compression.

    said = {l : sum_{i in N(x)} w_i y_il / sum_{i in N(x)} w_i > 1/2}        several labels, y (m, L)
    said = argmax_l of the same                                              one label a text
    N(x)  the k nearest training texts, or all within `radius`;  w_i = 1, or 1 / distance

    train    labelled rows, or a source of them; none: each item is judged by all the other items
    k        number of neighbours, unless there is a radius
    radius   of the neighbourhood, or none. With nobody in it, no label is said (one label: the most frequent one)
    weights  "uniform" or "distance"; a text at distance 0 is then the only voter
    distance "euclidean" or "cosine" of embeddings; "gzip", of the texts alone:
             d(x, z) = (|c(x z)| - min(|c(x)|, |c(z)|)) / max(|c(x)|, |c(z)|)      |c(.)| bytes of the compressed text
An embedding is the mean final state of a text (core/subject.py): what it costs nothing to read off a model, hence the
baseline of every trained head. Ties go to the first label in alphabetical order; half of the votes is no label.
Chance:     always the most frequent label.
Cost:       one forward a text, and n m distances; with gzip no forward, and n m texts compressed (about 30 us each).
Paper:      Cover and Hart, 1967, "Nearest neighbor pattern classification"; as baselines in Buchner et al., 2023,
            arXiv:2309.12075, section 4. gzip: Jiang et al., 2023, arXiv:2212.09410, equation 2.
Departures: none. Votes as in scikit-learn, the oracle; a tie of distances goes to the first training text.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from luthier.evaluation._labels import (
    Answers,
    Item,
    LabelSets,
    LuthierError,
    NDArray,
    Subject,
    gold_labels,
    labelled_items,
    need,
)


@dataclass(frozen=True)
class Neighbours(LabelSets):
    paper: ClassVar[str] = "Cover and Hart, 1967"
    cards: ClassVar[tuple[int, ...]] = (24,)
    train: Any = None
    k: int = 5
    radius: float | None = None
    weights: Literal["uniform", "distance"] = "uniform"
    distance: Literal["euclidean", "cosine", "gzip"] = "euclidean"

    def __post_init__(self) -> None:
        if self.k < 1 or (self.radius is not None and self.radius < 0):
            raise LuthierError("neighbours needs k >= 1 and radius >= 0")

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        known = list(items) if self.train is None else labelled_items(self.train)
        need([*known, *items], "text", self.name)
        taught, gold = gold_labels(known), gold_labels(items)
        names = sorted({label for labels in (*taught, *gold) for label in labels})
        y = np.array([[n in labels for n in names] for labels in taught], dtype=float)  # (m, L)
        distance = self.texts(items, known) if self.distance == "gzip" else self.embedded(subject, items, known)
        if self.train is None:
            np.fill_diagonal(distance, np.inf)
        votes = self.votes(distance, y)  # (n, L)
        several = any("labels" in i.row for i in known)
        said = [self._said(v, y, names, several) for v in votes]
        return self.sets(items, gold, said, names)

    def embedded(self, subject: Subject, items: Sequence[Item], known: Sequence[Item]) -> NDArray:
        """(n, m) float64."""
        there = subject.embeddings([i.text for i in known]).astype(float)  # (m, D)
        here = there if self.train is None else subject.embeddings([i.text for i in items]).astype(float)
        return self.distances(here, there)

    def texts(self, items: Sequence[Item], known: Sequence[Item]) -> NDArray:
        """(n, m) float64, without a model."""
        here, there = ([_written(i.text) for i in side] for side in (items, known))
        size_here, size_there = (np.array([_compressed(t) for t in side], dtype=float) for side in (here, there))
        both = np.array([[_compressed(f"{a} {b}") for b in there] for a in here], dtype=float).reshape(len(here), -1)
        small, large = (f(size_here[:, None], size_there) for f in (np.minimum, np.maximum))
        return np.maximum((both - small) / large, 0.0)

    def distances(self, here: NDArray, there: NDArray) -> NDArray:
        """(n, m) float64."""
        if self.distance == "cosine":
            here, there = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (here, there))
            return np.maximum(1 - here @ there.T, 0.0)
        return np.stack([np.sqrt(((there - x) ** 2).sum(1)) for x in here])

    def votes(self, distance: NDArray, y: NDArray) -> NDArray:
        """(n, L) share of the votes for each label; nan where nobody votes."""
        near = self._near(distance)  # (n, m) bool
        w = near.astype(float)
        if self.weights == "distance":
            same = near & (distance == 0)
            inverse = np.divide(1.0, distance, out=np.zeros_like(distance), where=near & (distance > 0))
            w = np.where(same.any(1, keepdims=True), same.astype(float), inverse)
        total = w.sum(1, keepdims=True)
        return np.divide(w @ y, total, out=np.full((len(w), y.shape[1]), np.nan), where=total > 0)

    def _near(self, distance: NDArray) -> NDArray:
        if self.radius is not None:
            return distance <= self.radius
        nearest = np.argsort(distance, axis=1, kind="stable")[:, : self.k]
        near = np.zeros(distance.shape, dtype=bool)
        np.put_along_axis(near, nearest, True, axis=1)
        return near & np.isfinite(distance)

    def _said(self, votes: NDArray, y: NDArray, names: Sequence[str], several: bool) -> list[str]:
        if several:
            return [n for n, v in zip(names, votes, strict=True) if v > 0.5]
        return [names[int((y.sum(0) if np.isnan(votes).any() else votes).argmax())]]


def _written(text: str | tuple[str, str]) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _compressed(text: str) -> int:
    return len(gzip.compress(text.encode()))
