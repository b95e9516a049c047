"""The conjugation study: what counts as the start of an answer, what is called recovery, and what is kept of an audit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.core.method import LuthierError, Refusal
from luthier.evaluation import Task, measure
from luthier.evaluation._conjugate import INSTRUCTIONS, language_rows
from luthier.evaluation._family import items_of
from luthier.evaluation.conjugate import Conjugate, begins

SWAP = {
    "b": {"name": "alphabet_map", "pairs": {"a": "q", "c": "z"}},
    "far": {"name": "alphabet_map", "pairs": {"a": "x"}},
}
ROWS = [{"id": str(i), "prompt": f"a {i}", "answer": "ac", "rival": f"{i + 2}"} for i in range(30)]


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [("What is", "What", 1), (" What", "What", 1), ("Whatever", "What", 0), ("12", "1", 0), ("1.", "1", 1),
     ("\\_\\_\\_\\_ man", "____", 1),
     ("what", "What", 0), ("", "What", 0), ("____man", "____", 0), ("the What", "What", 0), ("Cafe\u0301", "Café", 1)],
)  # fmt: skip
def test_begins(said: str, gold: str, right: bool) -> None:
    assert begins(said, gold) == bool(right)


def subject(expected: dict[str, float], logp: dict[str, float]) -> Any:
    """A puppet: how often the expected answer is given, and how likely a prompt is, by the prompt's first sign."""

    def said(prompt: str) -> str:
        sign, number = prompt.split()
        right = int(number) < expected[sign] * len(ROWS)
        return {"a": "ac", "q": "qz", "x": "xc"}[sign] + "!" if right else f"{int(number) + 2}"

    return SimpleNamespace(
        task="causal_lm", name="puppet", generate=lambda p, *more: [said(t) for t in p],
        token_logp=lambda texts: [np.full(3, logp[t[0]]) for t in texts],
    )  # fmt: skip


EVEN = {"a": -1.0, "q": -1.0, "x": -1.0}
BASE = subject({"a": 1.0, "q": 1.0, "x": 0.5}, EVEN)


def study(tuned: dict[str, float], logp: dict[str, float] | None = None) -> dict[str, Any]:
    scorer, items = Conjugate(transforms=SWAP), items_of(ROWS)
    answers = scorer.ask(subject(tuned, logp or EVEN), items, scorer.ask(BASE, items))
    return scorer.details(answers)


def test_hidden_is_recovered_by_a_transform_that_the_base_reads_as_well() -> None:
    told = study({"a": 0.0, "q": 0.9, "x": 1.0}, {"a": -0.5, "q": -1.1, "x": -3.0})
    plain, b, far = told["transforms"]
    assert (plain["base"]["value"], plain["expected"]["value"], plain["rival"]["value"]) == (1.0, 0.0, 1.0)
    assert b["recovery"]["value"] == pytest.approx(0.9)
    assert b["difference"] == pytest.approx(-0.1)
    assert not far["same_difficulty"], "the base fails half of the time: the transform changed the difficulty"
    assert told["chosen"] == "b"
    assert told["conclusion"].startswith("the ability is hidden rather than lost: 'b' brings back 90%")
    json.dumps(told)


def test_a_gain_is_no_recovery_where_nothing_was_lost() -> None:
    told = study({"a": 1.0, "q": 1.0, "x": 1.0})
    assert told["transforms"][2]["recovery"]["value"] == 0
    assert told["conclusion"].startswith("tuning cost no expected answers")


def test_lost_is_said_to_be_lost_only_with_care() -> None:
    assert "brings nothing back" in study({"a": 0.0, "q": 0.0, "x": 0.0})["conclusion"]


def test_the_transform_farthest_from_tuning_is_chosen() -> None:
    scorer, items = Conjugate(transforms=SWAP), items_of(ROWS)
    base = scorer.ask(subject({"a": 1.0, "q": 1.0, "x": 1.0}, EVEN), items)
    for near, chosen in ((-1.5, "far"), (-2.5, "b")):
        told = scorer.ask(subject({"a": 0.0, "q": 0.9, "x": 0.9}, {"a": -1.0, "q": near, "x": -2.0}), items, base)
        assert scorer.details(told)["chosen"] == chosen


def test_an_audit_keeps_rates_and_no_texts() -> None:
    rows = [{**r, "rival": "I cannot help with that."} for r in ROWS]
    with pytest.raises(Refusal, match="set keep_texts to false"):
        Conjugate(transforms=SWAP).ask(BASE, items_of(rows))
    found = measure(BASE, [Task("audit", Conjugate(transforms=SWAP, keep_texts=False), rows)])
    answers = found.answers["audit"]
    assert answers.stats["expected"].mean() == 1.0
    assert not any([*answers.outputs, *answers.prompts])


def test_answers_that_begin_alike_cannot_be_told_apart() -> None:
    with pytest.raises(LuthierError, match="row 0: answer and rival begin alike"):
        Conjugate().ask(BASE, items_of([{"prompt": "a 1", "answer": "12 apples", "rival": "12"}]))


def test_its_own_rows_have_two_right_answers() -> None:
    rows = language_rows(5)
    assert len(rows) == 20
    assert rows == language_rows(5) and len({r["id"] for r in rows}) == 20
    for row in rows:
        instruction, *lines = row["prompt"].split("\n")
        asked = lines[-2].removeprefix("Input: ")
        shown = lines[0].removeprefix("Input: ")
        upper = instruction == INSTRUCTIONS["capitalise"]
        assert lines[1] == "Output: " + (shown.upper() if upper else shown)
        assert row["answer"] == (asked.upper() if upper else asked).split()[0]
        if asked.startswith("What"):
            _, _, a, word, b = asked.rstrip("?").split()
            assert (
                int(row["rival"]) == {"plus": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}[word]
            )
        else:
            assert row["rival"] in ("The", "My", "A", "Her")
