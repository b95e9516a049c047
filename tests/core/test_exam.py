"""Exam tasks: how they are read and graded, what two parts may not share, options under other codes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luthier.core.exam import WORDINGS, duplicates, letters, parses, permuted, points, prompt, restored, target, task_of
from luthier.core.exam import wording as words_of
from luthier.core.method import LuthierError, RowError

EN, UK = WORDINGS["en"], WORDINGS["uk"]


def row(codes: str = "ABCD", right: str = "BDAC", **more: Any) -> dict[str, Any]:
    numbered = (
        [{"answer": str(i), "text": f"statement {i}"} for i in range(1, len(right) + 1)] if len(right) > 1 else []
    )
    options = [{"answer": c, "text": f"option {i}"} for i, c in enumerate(codes)]
    comment = "Comment\nTOPIC: Verbs. Tenses\nfirst step\nsecond step"
    return {
        "test_id": "7", "task_id": 3, "question": "match them", "answers": numbered + options, "correct_answer": list(right),
        "comment": comment, "with_photo": False,
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("right", "output", "wanted"),
    [
        ("BDAC", "Answer: B;D;A;C", 4.0),
        ("BDAC", "Answer:\nsteps\nAnswer: 1-B, 2–D, 3 - A, 4: C", 4.0),
        ("BDAC", "Answer: ['B', 'D', 'A', 'C']<end_of_turn> and so on", 4.0),
        ("BDAC", "Answer: 1-B, 2-D, 3-C, 4-A", 2.0),  # half right
        ("BDAC", "Answer: BD", 2.0),  # shorter: what is there counts
        ("BDAC", "Answer: BDACB", 0.0),  # too long
        ("BDAC", "Answer: B;D;A;C or so", 0.0),  # a stray word is more letters
        ("BDAC", "Answer:", 0.0),
        ("BDAC", "", 0.0),
        ("BDAC", "BDAC", 4.0),  # no keyword: the whole output
        ("B", "Answer: B", 1.0),
        ("B", "Answer: A\nAnswer: B", 1.0),  # the last one
        ("B", "Answer: BB", 0.0),
        ("B", "Answer: the right one is B", 0.0),
        ("B", "Answer: C", 0.0),
        ("B", "Answer: b", 0.0),
        ("B", "Answer: " + "B" * 11, 0.0),
    ],
)
def test_grades(right: str, output: str, wanted: float) -> None:
    task = task_of(row(right=right), EN)
    assert points(task, letters(output, EN, task.codes)) == wanted


def test_look_alikes_are_the_tasks_own_codes_both_ways() -> None:
    cyrillic, latin = "АБВС", "ABEC"
    task = task_of(row(cyrillic, "ВС"), UK)
    said = "Відповідь: B;C"  # Latin
    assert points(task, letters(said, UK)) == 0.0
    assert letters(said, UK, task.codes) == "ВС" and points(task, letters(said, UK, task.codes)) == 2.0
    other = task_of(row(latin, "BE"), EN)
    assert points(other, letters("Answer: В;Е", EN, other.codes)) == 2.0
    both = task_of(row("AА", "А"), EN)  # both are codes: nothing is changed
    assert points(both, letters("Answer: A", EN, both.codes)) == 0.0
    assert task_of(row(cyrillic, "AC"), UK).correct == tuple("АС")  # the row's own right codes as well


def test_what_parses() -> None:
    task = task_of(row(), EN)
    assert [parses(task, s) for s in ("BDAC", "BD", "", "BDACB", "BDXC")] == [True, True, False, False, False]


def test_points_are_the_rows_own_or_one_a_code() -> None:
    assert task_of(row(), EN).points == 4.0 and task_of(row(right="B"), EN).points == 1.0
    assert task_of(row(max_points=3), EN).points == 3.0
    assert points(task_of(row(max_points=3), EN), "BDCA") == 1.5


def test_three_forms_of_one_row() -> None:
    task = task_of(row(), EN)
    said = {form: target(task, EN, form) for form in ("letters", "cot", "cot+topic")}
    assert said["letters"] == "Answer: B;D;A;C"
    assert said["cot"] == "Answer:\nfirst step\nsecond step\nAnswer: 1-B, 2-D, 3-A, 4-C"
    assert said["cot+topic"] == said["cot"].replace("Answer:\n", "Answer:\nTOPIC: Verbs. Tenses\n", 1)
    for form, text in said.items():
        assert points(task, letters(text, EN, task.codes)) == 4.0
        assert ("detailed" in prompt(task, EN, form)) == (form != "letters") != (";" in prompt(task, EN, form))
    assert prompt(task, EN, "cot").endswith("1 - statement 1\n2 - statement 2\n3 - statement 3\n4 - statement 4\n"
                                            "A - option 0\nB - option 1\nC - option 2\nD - option 3")  # fmt: skip


def test_a_solution_that_ends_with_its_answer_keeps_one_and_may_not_contradict() -> None:
    good = task_of(row(right="B", comment="one step\nAnswer: B"), EN)
    assert target(good, EN, "cot") == "Answer:\none step\nAnswer: B"
    with pytest.raises(RowError, match="ends with another answer than B"):
        task_of(row(right="B", comment="one step\nAnswer: C"), EN)


def test_an_essay_keeps_its_text() -> None:
    essay = task_of(row(answers=[], correct_answer=[], comment="I think so.\nAnswer: as I said"), EN)
    for form in ("letters", "cot"):
        assert target(essay, EN, form) == "Answer:\nI think so.\nAnswer: as I said"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "no 'question'"),
        ({"correct_answer": ["Z"]}, "'Z' is none of its codes"),
        ({"correct_answer": []}, "no 'correct_answer'"),
        ({"answers": [{"answer": "A", "text": "x"}] * 2}, "same code"),
        ({"answers": ["A"]}, "no object"),
    ],
)
def test_rows_that_cannot_be_asked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        task_of(row() | change, EN)


def test_options_under_other_codes_and_back() -> None:
    task = task_of(row("ABCDE"), EN)
    changed = set()
    for seed in range(20):
        turned, old = permuted(task, random.Random(seed))
        texts, new = dict(task.options), dict(turned.options)
        assert [new[c] for c in turned.correct] == [texts[c] for c in task.correct]
        assert new["1"] == texts["1"] and sorted(new.values()) == sorted(texts.values())
        assert restored("".join(turned.correct), old) == "".join(task.correct)
        changed.add(turned.options)
    assert len(changed) > 15


def test_planted_duplicates_are_found() -> None:
    train = [row(test_id="1", comment=f"solution {i}", task_id=i, answers=_options(i)) for i in range(4)]
    test = [row(test_id="2", comment=f"another {i}", task_id=i, answers=_options(10 + i)) for i in range(4)]
    assert duplicates({"train": train, "test": test}) == []
    same = [test[0] | {"comment": "SOLUTION 2"}, test[1] | {"answers": _options(3)[::-1]}, test[2] | {"test_id": "1"}]
    found = duplicates({"train": train, "test": same})
    assert [d.kind for d in found] == ["solution", "options", "exam"]
    assert found[0].text == "test task 2/0 has the solution of train task 1/2"
    digits = [{"answer": c, "text": t} for c, t in zip("AB", "12", strict=True)]  # options that many tasks have
    assert not duplicates({"train": [row(test_id="1", comment="a", answers=digits)],
                           "test": [row(test_id="2", comment="b", answers=digits)]})  # fmt: skip


def _options(i: int) -> list[dict[str, str]]:
    return [{"answer": c, "text": f"option {c} of {i}"} for c in "ABCD"]


def test_wordings() -> None:
    assert words_of({"like": "uk", "keyword": "Ключ:"}).topic == "ТЕМА"
    with pytest.raises(LuthierError, match="none of en, uk, bare"):
        words_of("de")
    with pytest.raises(LuthierError, match="unknown key 'key'"):
        words_of({"key": "x"})
