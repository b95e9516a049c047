"""Preferences: pairs, ranked answers and choices; what is measured against the base."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.method import LuthierError
from luthier.evaluation._family import items_of
from luthier.evaluation.preferences import Preferences

KNOWN = {"good": (-2.0, 1), "bad": (-3.0, 1), "long and good": (-6.0, 6), "so-so": (-2.5, 1)}


class Stated:
    """A subject with a stated log-probability for every text."""

    def __init__(self, shift: dict[str, float] | None = None):
        self.shift = shift or {}

    def logp(self, prompts, texts):
        told = [KNOWN[t] for t in texts]
        logp = [a + self.shift.get(t, 0.0) for (a, _), t in zip(told, texts, strict=True)]
        return np.array(logp), np.array([n for _, n in told])


def stats(row: dict, subject=None, base=None) -> dict[str, float]:
    found = Preferences().ask(subject or Stated(), items_of([{"prompt": "q", **row}]), base)
    return {k: float(v[0]) for k, v in found.stats.items()}


def test_pairs_by_sums_and_by_means() -> None:
    row = {"chosen": "long and good", "rejected": "so-so"}
    found = stats(row)
    assert (found["accuracy"], found["accuracy_norm"], found["misalignment"], found["margin"]) == (0, 1, 0, -3.5)
    assert (found["reward_accuracy"], found["reward_margin"]) == (0.5, 0)


def test_rewards_are_against_the_base() -> None:
    row = {"chosen": "bad", "rejected": "good"}
    base = Preferences().ask(Stated(), items_of([{"prompt": "q", **row}]))
    found = stats(row, Stated({"bad": 0.75}), base)
    assert (found["accuracy"], found["reward_accuracy"], found["reward_margin"]) == (0, 1, 0.75)
    assert stats(row, Stated({"good": 0.1}), base)["reward_accuracy"] == 0


@pytest.mark.parametrize("order", [{"scores": [2, 1, 1, 0]}, {"ranks": [1, 2, 2, 9]}])
def test_ranked_answers_count_each_ordered_pair(order: dict) -> None:
    row = {"completions": ["good", "long and good", "so-so", "bad"], **order}
    found = stats(row)
    assert found["accuracy"] == pytest.approx(4 / 5)  # of the five ordered pairs the long one loses to the bad one
    assert found["accuracy_norm"] == pytest.approx(4 / 5)  # and by means it beats the best one


def test_both_sides_of_a_margin_are_told() -> None:
    found = stats({"completions": ["so-so", "bad", "good"], "scores": [1, 0, 2]})
    assert (found["logp_best"], found["logp_worst"]) == (-2.0, -3.0)


def test_rows_that_order_nothing_are_refused() -> None:
    for row, message in (
        ({"completions": ["good", "bad"], "scores": [1, 1]}, "orders no two answers"),
        ({"completions": ["good", "bad"], "scores": [1]}, "orders no two answers"),
        ({"answer": "good"}, "neither chosen and rejected"),
    ):
        with pytest.raises(LuthierError, match=message):
            stats(row)
