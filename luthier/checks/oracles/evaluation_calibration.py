"""Brier score, log loss and expected calibration error of known probabilities, by scikit-learn and by a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import log_loss

from luthier.checks import evaluation
from luthier.checks.oracles._evaluation import equal, method


def _told() -> tuple[Any, np.ndarray, np.ndarray]:
    """Answers of a head with soft probabilities, those probabilities and the right classes."""
    scorer = method(__name__)
    world = evaluation.worlds(scorer)[1]
    items = world.items(scorer, 120)[:120]
    p = np.random.default_rng(4).dirichlet([0.7, 0.7, 0.7], len(items))
    subject = evaluation.Puppet(world, items, lambda i: 0)
    subject.class_probabilities = lambda texts: p  # type: ignore[method-assign]
    return scorer.ask(subject, items), p, np.array([int(i.label) for i in items])


def oracle_sklearn() -> None:
    scorer = method(__name__)
    answers, p, truth = _told()
    equal(evaluation.value(scorer, answers, "nll"), log_loss(truth, p, labels=[0, 1, 2]), "nll")
    equal(evaluation.value(scorer, answers, "brier"), float(((p - np.eye(3)[truth]) ** 2).sum(1).mean()), "brier")
    equal(evaluation.value(scorer, answers, "accuracy"), float((p.argmax(1) == truth).mean()), "accuracy")


def oracle_loop() -> None:
    """Bins of equal width: the sum over bins of |hits - confidence| / n, item by item."""
    scorer = method(__name__)
    answers, p, truth = _told()
    M, gaps = scorer.bins, [0.0] * scorer.bins
    for row, g in zip(p, truth):
        c = row.max()
        m = next(m for m in range(M) if c <= (m + 1) / M)
        gaps[m] += float(row.argmax() == g) - c
    equal(evaluation.value(scorer, answers, "ece"), sum(map(abs, gaps)) / len(p), "ece")
    right = float((p.argmax(1) == truth).mean())
    equal(evaluation.value(scorer, answers, "trust"), right - sum(map(abs, gaps)) / len(p), "trust")


def oracle_equal_count() -> None:
    """Items in order of confidence, cut into M parts of one size: 120 items, 10 bins of 12."""
    scorer = method(__name__)
    answers, p, truth = _told()
    order = sorted(range(len(p)), key=lambda i: p[i].max())
    size = len(p) // scorer.bins
    parts = [order[m * size : (m + 1) * size] for m in range(scorer.bins)]
    gaps = [abs(sum(float(p[i].argmax() == truth[i]) - p[i].max() for i in part)) for part in parts]
    equal(evaluation.value(scorer, answers, "ece_mass"), sum(gaps) / len(p), "ece_mass")
