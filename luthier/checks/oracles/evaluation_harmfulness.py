"""Scores summed by hand: the puppet's right answers are safe, all others are as bad as can be."""

from __future__ import annotations

from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import answered, equal, method


def oracle_sums() -> None:
    scorer = method(__name__)
    answers, said, truth = answered(scorer)
    wrong = sum(int(a) != int(b) for a, b in zip(said, truth))
    equal(value(scorer, answers, "harm_rate"), wrong / len(said), "harm_rate")
    equal(value(scorer, answers, "harm_score"), (5 * wrong + len(said) - wrong) / len(said), "harm_score")
