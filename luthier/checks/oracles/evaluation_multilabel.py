"""scikit-learn's metrics of random label sets, and of single labels as sets of one."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from luthier.checks.evaluation import CHOICES, value
from luthier.checks.oracles._evaluation import answered, equal, method
from luthier.evaluation._family import Item


def _compare(scorer: object, answers: object, truth: np.ndarray, said: np.ndarray, names: list[str]) -> None:
    wanted = {"exact": accuracy_score(truth, said), "jaccard_samples": jaccard_score(truth, said, average="samples")}
    for average in ("macro", "micro", "weighted"):
        wanted[f"jaccard_{average}"] = jaccard_score(truth, said, average=average)
    for average in ("macro", "micro"):
        wanted[f"{average}_f1"] = f1_score(truth, said, average=average)
    for name, f1 in zip(names, f1_score(truth, said, average=None)):
        wanted[f"f1_{name}"] = f1
    for metric, number in wanted.items():
        equal(value(scorer, answers, metric), float(number), metric)  # type: ignore[arg-type]


def oracle_sklearn_sets() -> None:
    scorer, rng, names = method(__name__), np.random.default_rng(4), ["a", "b c", "b", "d"]
    truth, said = rng.random((80, 4)) < 0.4, rng.random((80, 4)) < 0.5
    truth[:, 0] |= ~truth.any(1)
    said[:, 1] |= ~said.any(1)

    def named(marks: np.ndarray) -> list[list[str]]:
        return [[n for n, on in zip(names, row) if on] for row in marks]

    items = [Item(str(i), text="t") for i in range(80)]
    _compare(scorer, scorer.sets(items, named(truth), named(said), names), truth, said, names)


def oracle_sklearn_one_label() -> None:
    scorer = method(__name__)
    for world in (0, 1):
        answers, said, truth = answered(scorer, world)
        marks = np.eye(len(CHOICES), dtype=bool)
        _compare(scorer, answers, marks[truth], marks[said], list(CHOICES))
