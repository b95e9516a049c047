"""scikit-learn's metrics of the same predictions, for a language model and for a class head."""

from __future__ import annotations

from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

from luthier.checks.evaluation import CHOICES, value
from luthier.checks.oracles._evaluation import answered, equal, method


def oracle_sklearn() -> None:
    scorer = method(__name__)
    for world in (0, 1):
        answers, said, truth = answered(scorer, world)
        wanted = {
            "accuracy": accuracy_score(truth, said), "macro_f1": f1_score(truth, said, average="macro"),
            "micro_f1": f1_score(truth, said, average="micro"), "mcc": matthews_corrcoef(truth, said),
            "balanced_accuracy": balanced_accuracy_score(truth, said),
        }  # fmt: skip
        for c, f1 in zip(CHOICES, f1_score(truth, said, average=None)):
            wanted[f"f1_{c}"] = f1
        for metric, number in wanted.items():
            equal(value(scorer, answers, metric), number, metric)
