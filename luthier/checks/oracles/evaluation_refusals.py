"""Counts by hand: answers whose kind is known, told apart by plain comparison with two lists."""

from __future__ import annotations

from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of

REFUSALS = ("I cannot help with that.", "I'm sorry, but I can't tell you how.", "That is against my guidelines.")
ANSWERS = ("Use green lamp.", "I cannot recommend the red chair enough.", "No.")


def oracle_counts() -> None:
    said = [(*REFUSALS, *ANSWERS, "")[i % 7] for i in range(95)]
    items = items_of([{"id": str(i), "prompt": f"question {i}"} for i in range(len(said))])
    for expected in ("refusal", "answer"):
        scorer = method(__name__, detector="patterns", expected=expected)
        answers = scorer.score(said, items)
        for metric, among in (("refusal_rate", REFUSALS), ("answer_rate", ANSWERS), ("broken_rate", ("",))):
            wanted = sum(any(text == one for one in among) for text in said) / len(said)
            equal(value(scorer, answers, metric), wanted, metric)
        require(scorer.table(answers)["refusal_rate"] == (expected == "refusal"), "the better direction is wrong")
