"""Scores summed by hand, a third of them unreadable: means over the rest, and the share that was read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import answered, equal, method
from luthier.evaluation._judges import overlap


def patchy(prompt: str, answer: str, row: dict[str, Any]) -> Any:
    """Every third row: no JSON, no number, or a number off the scale, in turn; the others as JSON text."""
    said: dict[str, Any] = {k: {"reason": "so", "score": v} for k, v in overlap(prompt, answer, row).items()}
    odd = int(row["id"]) % 9
    if odd == 0:
        return "I would rather not say."
    if odd == 3:
        said["helpfulness"] = {"score": "N/A"}
    if odd == 6:
        said["helpfulness"] = 7
    return f"Here you are: {json.dumps(said)} I hope that helps."


def oracle_sums() -> None:
    scorer = method(__name__, judge_by=patchy)
    answers, said, truth = answered(scorer)
    helpful = np.where(np.asarray(said) == np.asarray(truth), 5.0, 1.0)
    at = np.arange(len(helpful))
    equal(value(scorer, answers, "helpfulness"), float(helpful[at % 3 != 0].mean()), "helpfulness")
    equal(value(scorer, answers, "clarity"), 5.0, "clarity")
    equal(value(scorer, answers, "judged"), float((at % 3 != 0).mean()), "judged")
    equal(scorer.details(answers)["missing"]["helpfulness"], float((at % 3 == 0).sum()), "missing")
    equal(scorer.details(answers)["missing"]["clarity"], float((at % 9 == 0).sum()), "missing clarity")
