"""seqeval's precision, recall and F1 on random rows of classes, well and badly spelled; scikit-learn's where they spell none."""

from __future__ import annotations

from typing import Any

import numpy as np
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score
from sklearn.metrics import f1_score as token_f1

from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import Answers
from luthier.evaluation.tagging import counts

SPELLED = ("O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B")


def _rows(names: tuple[str, ...], seed: int, n: int = 200) -> tuple[list[list[str]], list[list[str]]]:
    rng = np.random.default_rng(seed)
    truth = [[str(rng.choice(names)) for _ in range(rng.integers(1, 9))] for _ in range(n)]
    said = [[t if rng.random() < 0.6 else str(rng.choice(names)) for t in row] for row in truth]
    return truth, said


def _answers(truth: list[Any], said: list[Any]) -> Answers:
    stats, types = counts(truth, said)
    return Answers(
        [str(i) for i in range(len(truth))], {k: np.asarray(v, float) for k, v in stats.items()}, names=types
    )


def oracle_seqeval() -> None:
    scorer = method(__name__)
    for seed in range(3):
        truth, said = _rows(SPELLED, seed)
        answers = _answers(truth, said)
        wanted = {
            "f1": f1_score(truth, said), "precision": precision_score(truth, said), "recall": recall_score(truth, said),
            "accuracy": accuracy_score(truth, said),
        }  # fmt: skip
        by_type = classification_report(truth, said, output_dict=True)
        wanted |= {f"f1_{of}": by_type[of]["f1-score"] for of in ("A", "B")}
        for metric, number in wanted.items():
            equal(value(scorer, answers, metric), float(number), metric)


def oracle_sklearn() -> None:
    """Parts of speech: every word is a span, and O is none of the classes that count."""
    names = ("NOUN", "VERB", "O")
    truth, said = _rows(names, 5)
    answers, flat = _answers(truth, said), [[t for row in rows for t in row] for rows in (truth, said)]
    scorer = method(__name__)
    equal(value(scorer, answers, "f1"), token_f1(*flat, labels=list(names[:2]), average="micro"), "f1")
    for name, number in zip(names[:2], token_f1(*flat, labels=list(names[:2]), average=None)):
        equal(value(scorer, answers, f"f1_{name}"), number, f"f1_{name}")
