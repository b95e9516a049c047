"""Scorers of programs: broken and hostile text, renaming, estimators at their ends, missing columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.method import LuthierError
from luthier.evaluation._family import items_of
from luthier.evaluation.code_tests import pass_at_k

SIMILARITY, TESTS = (catalog.load("evaluation", n).example() for n in ("code_similarity", "code_tests"))
CODE = "def f(xs):\n xs = sorted(xs)\n return sum(xs[:2])"


def measured(said: str, right: str = CODE) -> dict[str, float]:
    answers = SIMILARITY.score([said], items_of([{"prompt": "p", "answer": right}]))
    return {m: float(SIMILARITY.aggregate(m, answers)(answers.stats, np.ones((1, 1)))[0]) for m in SIMILARITY.metrics}


def test_the_same_code_is_1_everywhere() -> None:
    assert measured(CODE) == pytest.approx(dict.fromkeys(SIMILARITY.metrics, 1.0))
    spaced = CODE.replace(" = ", "  =  ") + "\n\n"
    assert measured(spaced)["exact_match"] == 1.0  # blanks are normalised on both sides


@pytest.mark.parametrize("said", ["def f(xs", "(" * 500, "\x00", "🙂" * 10, "x" * 200_000, "-" * 5000 + "1"])
def test_broken_or_endless_text_does_not_crash(said: str) -> None:
    found = measured(said)
    assert 0 <= found["code_match"] < 1
    assert found["ast_match"] == found["dataflow_match"] == found["parses"] == found["exact_match"] == 0


def test_saying_nothing() -> None:
    found = measured("")
    assert found["bleu"] == found["ast_match"] == found["exact_match"] == found["edit_similarity"] == 0


def test_renaming_keeps_tree_and_data_flow() -> None:
    found = measured(CODE.replace("xs", "values"))
    assert found["ast_match"] == found["dataflow_match"] == 1.0
    assert found["bleu"] < 1 and found["exact_match"] == 0


def test_without_edges_the_other_parts_weigh_more() -> None:
    answers = SIMILARITY.score(["print(3)"], items_of([{"prompt": "p", "answer": "print(4)"}]))
    found = measured("print(3)", "print(4)")
    assert np.isnan(found["dataflow_match"])
    parts = [found[m] for m in ("bleu", "weighted_bleu", "ast_match")]
    assert found["code_match"] == pytest.approx(sum(parts) / 3)
    assert SIMILARITY.details(answers)["references without dataflow_match"] == 1


def test_pass_at_k() -> None:
    assert pass_at_k(10, 0, 5) == 0.0 and pass_at_k(10, 10, 1) == 1.0
    assert pass_at_k(10, 6, 5) == 1.0  # five samples cannot all be among four failures
    assert pass_at_k(4, 1, 1) == 0.25
    rising = [pass_at_k(200, 3, k) for k in range(1, 201)]
    assert rising == sorted(rising)


def test_tests_must_be_there_and_k_must_fit() -> None:
    with pytest.raises(LuthierError, match="has no tests"):
        replace(TESTS, source="").ask(None, items_of([{"prompt": "p"}]))
    with pytest.raises(LuthierError, match="between 1 and samples"):
        replace(TESTS, k=(1, 5), samples=2)
