"""scikit-learn's neighbour classifiers on the same embeddings, for one label and for several at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier

from luthier.checks._compare import require
from luthier.checks.evaluation import worlds
from luthier.checks.oracles._evaluation import method
from luthier.core.subject import Subject
from luthier.evaluation._family import items_of

WORDS = ["maple", "river", "stone", "cloud", "amber", "violet", "cedar"]


def _rows(n: int, several: bool, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        words = [WORDS[i] for i in rng.choice(len(WORDS), 3, replace=False)]
        label: dict[str, Any] = {"labels": sorted(words[:2])} if several else {"label": words[0]}
        rows.append({"text": f"{' '.join(words)} {int(rng.integers(1000))}", **label})
    return rows


def _embedded(subject: Subject, rows: list[dict[str, Any]]) -> np.ndarray:
    return subject.embeddings([r["text"] for r in rows]).astype(float)


def oracle_sklearn() -> None:
    subject = worlds(method(__name__))[0].real(4096)
    for several in (False, True):
        train, test = _rows(60, several, 1), _rows(40, several, 2)
        x, z = _embedded(subject, train), _embedded(subject, test)
        y = _targets(train, several)
        radius = float(np.median(np.sort(np.linalg.norm(z[:, None] - x[None], axis=2), axis=1)[:, 4]))
        for weights in ("uniform", "distance"):
            for metric in ("euclidean", "cosine"):
                theirs = KNeighborsClassifier(7, weights=weights, metric=metric, algorithm="brute").fit(x, y)
                scorer = method(__name__, k=7, weights=weights, distance=metric, train=train)
                _same(scorer, subject, test, theirs.predict(z), several)
            outside = 0 if several else "most_frequent"
            within = RadiusNeighborsClassifier(radius, weights=weights, outlier_label=outside, algorithm="brute")
            scorer = replace(method(__name__, weights=weights, train=train), radius=radius)
            found = _same(scorer, subject, test, within.fit(x, y).predict(z), several)
            alone = (np.linalg.norm(z[:, None] - x[None], axis=2) > radius).all(1)
            require(0 < alone.sum() < len(test), "the radius has somebody in it everywhere or nowhere")
            require(not several or all(not found[i] for i in np.flatnonzero(alone)), "labels without neighbours")


def _targets(rows: list[dict[str, Any]], several: bool) -> Any:
    if several:
        return np.array([[int(w in r["labels"]) for w in sorted(WORDS)] for r in rows])
    return np.array([r["label"] for r in rows])


def _same(scorer: Any, subject: Subject, test: list[dict[str, Any]], theirs: Any, several: bool) -> list[str]:
    found = scorer.ask(subject, items_of(test)).outputs
    wanted = ["; ".join(w for w, on in zip(sorted(WORDS), row) if on) for row in theirs] if several else list(theirs)
    odd = [(a, b) for a, b in zip(found, wanted) if a != b]
    require(not odd, f"{scorer}: {len(odd)} of {len(test)} differ, the first {odd[:1]}")
    return found
