"""Points of exams: sums an exam, options in other orders, errors that name the row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from luthier import sandbox
from luthier.core.method import LuthierError
from luthier.evaluation._family import items_of
from luthier.evaluation.exam_points import ExamPoints

ROWS = sandbox.rows("exam", task="mixed", split="test", n=16)


class Writer:
    """Answers every prompt by a function of its options {code: text} and statements."""

    def __init__(self, answer: Any):
        self.answer = answer

    def generate(self, prompts: list[Any], *limits: Any) -> list[str]:
        return [self.answer(prompt[-1]["content"]) for prompt in prompts]


def values(scorer: ExamPoints, subject: Any, rows: Any = ROWS) -> dict[str, float]:
    answers = scorer.ask(subject, items_of(rows))
    once = np.ones((1, len(answers)))
    return {m: float(scorer.aggregate(m, answers)(answers.stats, once)[0]) for m in scorer.table(answers)}


def solver(prompt: str) -> str:
    """Applies the rules to what the prompt says."""
    from luthier.sandbox.worlds.exam import RULES
    from luthier.sandbox.worlds.labels import NOUN_TOPIC

    code = {text: c for c, text in re.findall(r"^([A-E]) - (\d)$", prompt, re.MULTILINE)}
    rule = RULES[NOUN_TOPIC[prompt.split()[0]]]
    triples = re.findall(r"\d \d \d", prompt)
    return "Answer: " + ";".join(code[str(rule([int(d) for d in t.split()]))] for t in triples)


def test_points_of_an_exam() -> None:
    scorer = ExamPoints(wording="bare", permutations=3)
    right = values(scorer, Writer(solver))
    assert right == {
        "share": 1.0, "points": 14.0, "single": 6.0, "matching": 8.0, "unparsed": 0.0, "mattered": 0.0, "permuted": 1.0,
        "steady": 1.0,
    }  # fmt: skip
    none = values(scorer, Writer(lambda prompt: "I do not know"))
    assert none["points"] == 0.0 and none["unparsed"] == 1.0


def test_who_goes_by_the_position_is_unsteady() -> None:
    """Always the first option: restored codes differ from order to order."""
    found = values(ExamPoints(wording="bare", permutations=4), Writer(lambda prompt: "Answer: A"))
    assert found["unparsed"] == 0.0 and 0.05 < found["steady"] < 0.4


def test_look_alikes_are_counted() -> None:
    def cyrillic(prompt: str) -> str:
        return solver(prompt).replace("A", "А", 2).replace("Аnswer", "Answer")

    found = values(ExamPoints(wording="bare"), Writer(cyrillic))
    with_a = sum("A" in r["correct_answer"] for r in ROWS) / len(ROWS)
    assert found["share"] == 1.0 and found["mattered"] == pytest.approx(with_a) and with_a > 0


def test_rows_that_cannot_be_graded_are_named() -> None:
    bad = ROWS[0] | {"id": "r9", "answers": [], "correct_answer": []}
    with pytest.raises(LuthierError, match="row r9 has no right option"):
        values(ExamPoints(), Writer(solver), [bad])
    with pytest.raises(LuthierError, match="row r9: no 'question'"):
        values(ExamPoints(), Writer(solver), [bad | {"question": ""}])
