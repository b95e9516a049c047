"""Scores in several respects: gold above half of it above something else, nothing missing made up, no name told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import llama, tokenizer

from luthier.core.layout import Layout
from luthier.core.method import LuthierError
from luthier.core.mixture import Other
from luthier.core.subject import Subject
from luthier.decoding.urial import Urial
from luthier.evaluation import _judges
from luthier.evaluation._compare import Measured, measure, pair, task
from luthier.evaluation._family import items_of
from luthier.evaluation._judges import Case, read, request
from luthier.evaluation.aspects import FIVE, Aspects

GOLD = "plant the seeds in spring and water them every second day"
ROWS = [
    {"id": "a", "prompt": "How do I grow beans?", "answer": GOLD, "topic": "garden"},
    {"id": "b", "prompt": "How do I grow peas?", "answer": GOLD + " in the sun", "topic": "garden"},
    {
        "id": "c",
        "prompt": "Why is the sky blue?",
        "answer": "air scatters blue light more than red light",
        "topic": "sky",
    },
]


class Says:
    """A subject that gives prepared answers."""

    def __init__(self, answer: Any, name: str = "secret-model-7b"):
        self.answer, self.name, self.beside = answer, name, None

    def generate(self, prompts: list[str], *limits: Any, **more: Any) -> list[str]:
        rows = {r["prompt"]: r for r in ROWS}
        return [self.answer(rows[p]) for p in prompts]


def gold(row: dict[str, Any]) -> str:
    return row["answer"]


def half(row: dict[str, Any]) -> str:
    return " ".join(row["answer"].split()[: len(row["answer"].split()) // 2])


def other(row: dict[str, Any]) -> str:
    return "my favourite film was made long ago"


def means(answer: Any, rows: list[dict[str, Any]] = ROWS, **options: Any) -> dict[str, float]:
    scorer = Aspects(**{"judge_by": _judges.overlap, **options})
    answers = scorer.ask(Says(answer), items_of(rows))  # type: ignore[arg-type]
    ones = np.ones((1, len(rows)))
    return {m: float(scorer.aggregate(m, answers)(answers.stats, ones)[0]) for m in scorer.table(answers)}


def test_gold_above_half_of_it_above_something_else_in_any_order() -> None:
    found = [means(a)["helpfulness"] for a in (gold, half, other)]
    assert found[0] == 5 > found[1] > found[2] == 1
    for answer, value in zip((gold, half, other), found, strict=True):
        assert means(answer, ROWS[::-1])["helpfulness"] == pytest.approx(value)
    assert means(gold)["words"] == pytest.approx(np.mean([len(r["answer"].split()) for r in ROWS]))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"helpfulness": 4}, 4.0),
        ('Well. {"helpfulness": {"reason": "right", "score": "3"}} So be it.', 3.0),
        ('{broken} then {"helpfulness": 2.5}', 2.5),
        ('```json\n{"helpfulness": {"score": 5}}\n```', 5.0),
        ("no JSON at all", math.nan),
        ('{"helpfulness": "N/A"}', math.nan),
        ('{"helpfulness": null}', math.nan),
        ('{"helpfulness": true}', math.nan),
        ('{"helpfulness": 0}', math.nan),
        ('{"helpfulness": 6}', math.nan),
        ('{"clarity": 4}', math.nan),
        (None, math.nan),
        ('["helpfulness", 4]', math.nan),
    ],
)
def test_a_verdict_is_read_or_missing(said: Any, wanted: float) -> None:
    assert read(said, ["helpfulness"])[0]["helpfulness"] == pytest.approx(wanted, nan_ok=True)


def test_missing_scores_are_counted_and_never_given() -> None:
    def moody(prompt: str, answer: str, row: dict[str, Any]) -> Any:
        return (
            "hm" if row["id"] == "a" else {**dict.fromkeys(FIVE, 2), **({"depth": "N/A"} if row["id"] == "b" else {})}
        )

    found = means(gold, judge_by=moody)
    assert found["helpfulness"] == found["depth"] == 2
    assert found["judged"] == pytest.approx(1 / 3)
    one = {
        "name": "t",
        "scorer": "aspects",
        "data": ROWS,
        "judge_by": "luthier.evaluation._judges:overlap",
        "by": "topic",
    }
    told = Aspects(judge_by=moody)
    details = told.details(told.ask(Says(gold), items_of(ROWS)))  # type: ignore[arg-type]
    assert details["items"] == 3 and details["judged"] == 1
    assert details["missing"] == {"helpfulness": 1, "clarity": 1, "factuality": 1, "depth": 2, "engagement": 1}
    silent = means(gold, judge_by=lambda prompt, answer, row: "hm")
    assert math.isnan(silent["helpfulness"]) and silent["judged"] == 0
    base, tuned = (measure(Says(a), [one]) for a in (half, gold))  # type: ignore[arg-type]
    results = pair(base, tuned, resamples=200)
    assert results["tuned"]["t"]["helpfulness"]["value"] == 5 and results["paired"]["t"]["words"]["verdict"] == "same"
    by = results["aspects"]["t"]["tuned"]["by"]
    assert {k: v["items"] for k, v in by.items()} == {"garden": 2, "sky": 1}


def test_a_judge_that_knew_the_system_could_not_tell() -> None:
    """What a judge is given is the question, the answer and the row: never a name, nor what wrote the answer."""
    heard: list[tuple[Any, ...]] = []

    def listening(*told: Any) -> dict[str, int]:
        heard.append(told)
        return dict.fromkeys(FIVE, 3)

    for name in ("secret-model-7b", "another"):
        Aspects(judge_by=listening).ask(Says(gold, name), items_of(ROWS))  # type: ignore[arg-type]
    assert heard[:3] == heard[3:] == [(r["prompt"], r["answer"], r) for r in ROWS]
    assert "secret" not in json.dumps(heard)


def test_two_answers_are_judged_in_both_orders() -> None:
    """A judge that always likes what is shown first has no say; one that reads has."""
    base = Aspects(judge_by=_judges.overlap).ask(Says(half), items_of(ROWS))  # type: ignore[arg-type]

    def against(judge: Any, answer: Any) -> tuple[dict[str, float], dict[str, Any]]:
        scorer = Aspects(judge_by=judge, against="base")
        found = scorer.ask(Says(answer), items_of(ROWS), base)  # type: ignore[arg-type]
        ones = np.ones((1, 3))
        return {
            m: float(scorer.aggregate(m, found)(found.stats, ones)[0]) for m in scorer.table(found)
        }, scorer.details(found)

    first, details = against(lambda prompt, a, b, row: dict.fromkeys(FIVE, "A"), gold)
    assert first["helpfulness"] == 0.5 and first["steady"] == 0
    assert details["outcomes"]["helpfulness"] == {"better": 0, "tie": 3, "worse": 0}
    better, worse, equal = (against(_judges.nearer, a)[0] for a in (gold, other, half))
    assert (better["helpfulness"], worse["helpfulness"], equal["helpfulness"]) == (1, 0, 0.5)
    assert better["steady"] == worse["steady"] == equal["steady"] == 1
    odd, details = against(lambda prompt, a, b, row: {"helpfulness": "A" if a == row["answer"] else "who knows"}, gold)
    assert math.isnan(odd["helpfulness"]) and details["missing"]["helpfulness"] == 3
    own = Aspects(judge_by=_judges.nearer, against="reference").ask(Says(half), items_of(ROWS))  # type: ignore[arg-type]
    assert own.stats["helpfulness"].tolist() == [0, 0, 0]
    alone = Aspects(judge_by=_judges.nearer, against="base").ask(Says(half), items_of(ROWS))  # type: ignore[arg-type]
    assert alone.stats["helpfulness"].tolist() == [0.5] * 3


def test_a_model_can_judge() -> None:
    """It is loaded beside the subject, reads question, answer and aspects, and its JSON is the verdict."""
    read_texts: list[str] = []

    class Judging:
        chat_template = None

    def load(told: dict[str, Any]) -> Other:
        assert told == {"model_name_or_path": "judge"}
        return Other(SimpleNamespace(), Judging(), "judge")  # type: ignore[arg-type]

    def generate(self: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
        assert max_new_tokens == 50
        read_texts.extend(prompts)
        return ['Verdict: {"helpfulness": {"reason": "all there", "score": 4}}'] * len(prompts)

    subject = Says(gold)
    subject.beside = load
    scorer = Aspects(judge_by={"model": "judge", "max_new_tokens": 50}, aspects=("helpfulness",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_judges.Subject, "generate", generate)
        found = scorer.ask(subject, items_of(ROWS))  # type: ignore[arg-type]
    assert found.stats["helpfulness"].tolist() == [4, 4, 4]
    assert scorer.details(found)["reasons"]["a"] == "helpfulness: all there"
    assert all(
        r["prompt"] in t and r["answer"] in t and "secret" not in t for r, t in zip(ROWS, read_texts, strict=True)
    )
    two = request(Case("Q?", ("one", "two"), {}), ["clarity"])
    assert "## Answer A\none" in two and "## Answer B\ntwo" in two and '"tie"' in two
    with pytest.raises(LuthierError, match="nothing here loads one"):
        scorer.ask(Says(gold), items_of(ROWS))  # type: ignore[arg-type]
    with pytest.raises(LuthierError, match="judge_by is missing"):
        Aspects().ask(Says(gold), items_of(ROWS))  # type: ignore[arg-type]


def test_reasons_are_kept_with_the_answers_and_not_without_texts(tmp_path: Path) -> None:
    def says_why(prompt: str, answer: str, row: dict[str, Any]) -> Any:
        return {"helpfulness": {"score": 3, "reason": "so"}}

    scorer = Aspects(judge_by=says_why, aspects=("helpfulness",))
    found = scorer.ask(Says(gold), items_of(ROWS))  # type: ignore[arg-type]
    one = task({"name": "t", "scorer": "aspects", "judge_by": "luthier.evaluation._judges:overlap", "data": ROWS})
    Measured("m", {"t": one}, {"t": found}).save(tmp_path / "m.json")
    again = Measured.load(tmp_path / "m.json", [one]).answers["t"]
    assert scorer.details(again)["reasons"] == dict.fromkeys("abc", "helpfulness: so")
    assert "reasons" not in scorer.details(found.without_texts())


def test_a_question_that_is_an_example_of_the_constant_prompt_is_refused() -> None:
    shown = Urial(examples=Layout(examples=(("How do I grow beans?", "x"),)), k=1)
    told = {"name": "t", "scorer": "aspects", "data": ROWS, "judge_by": "luthier.evaluation._judges:overlap"}
    with pytest.raises(LuthierError, match="row a is one of the examples in the constant prompt"):
        measure(Subject(llama(), tokenizer(), decoder=shown), [told])
