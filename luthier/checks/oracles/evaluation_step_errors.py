"""The four rates counted one answer after another, by the words of the definitions."""

from __future__ import annotations

import numpy as np

from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import Answers
from luthier.evaluation.step_errors import statistics


def oracle_counts() -> None:
    rng = np.random.default_rng(4)
    truth = [(rng.random(rng.integers(1, 7)) < 0.8).tolist() for _ in range(300)]
    said = [[t if rng.random() < 0.8 else not t for t in row] for row in truth]
    stats = {k: np.asarray(v) for k, v in statistics(truth, said).items()}
    answers, scorer = Answers([str(i) for i in range(len(truth))], stats), method(__name__)

    found = wrong = kept = clean = agree = steps = 0
    for row, told in zip(truth, said):
        agree, steps = agree + sum(a == b for a, b in zip(row, told)), steps + len(row)
        if all(row):
            clean, kept = clean + 1, kept + all(told)
            continue
        first = min(k for k, right in enumerate(row) if not right)
        wrong, found = wrong + 1, found + (not told[first] and all(told[:first]))
    f, k = found / wrong, kept / clean
    wanted = {"found": f, "kept": k, "f1": 2 * f * k / (f + k), "accuracy": agree / steps}
    for metric, number in wanted.items():
        equal(value(scorer, answers, metric), number, metric)
