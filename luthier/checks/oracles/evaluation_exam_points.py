"""Grades from the rows themselves, exam by exam, with fractions; outputs that go wrong in every way that an exam knows."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from fractions import Fraction
from typing import Any

from luthier import sandbox
from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of

CYRILLIC = str.maketrans("ABCE", "АВСЕ")
"""What looks like codes of the made-up exams."""
FORMS = (
    lambda codes, rng: ";".join(codes),
    lambda codes, rng: ", ".join(f"{i}–{c}" for i, c in enumerate(codes, 1)),
    lambda codes, rng: "; ".join(f"{i} - {rng.choice('ABCDE')}" for i, _ in enumerate(codes, 1)),
    lambda codes, rng: str(codes[:-1]),
    lambda codes, rng: "".join(codes) + "A",
    lambda codes, rng: "".join(codes) + " it is",
    lambda codes, rng: ";".join(codes).translate(CYRILLIC),
    lambda codes, rng: "".join(rng.choice("ABCDE") for _ in codes) + "<end> B",
    lambda codes, rng: "",
)


def _outputs(rows: list[dict[str, Any]]) -> list[str]:
    rng = random.Random(5)
    return [f"Answer: E\nAnswer: {FORMS[i % len(FORMS)](r['correct_answer'], rng)}" for i, r in enumerate(rows)]


def _grade(row: dict[str, Any], output: str, alike: bool) -> tuple[Fraction, bool]:
    """(points, whether it is an answer) of a row, from the end of its output."""
    end = re.search(r"Answer(?!.*Answer)([^<]*)", output, re.DOTALL)
    said = [c for c in (end[1] if end else output) if re.match(r"[^\W\d_]", c)]
    if alike:
        said = [c.translate({v: k for k, v in CYRILLIC.items()}) for c in said]
    right = row["correct_answer"]
    answer = 1 <= len(said) <= len(right) and set(said) <= set("ABCDE")
    if len(said) > len(right):
        return Fraction(0), answer
    agree = sum(a == b for a, b in zip(said, right))
    return (Fraction(agree, len(right)) * len(right) if len(right) > 1 else Fraction(said == right)), answer


class _Says:
    def __init__(self, outputs: list[str]):
        self.outputs = outputs

    def generate(self, prompts: list[Any], *limits: Any) -> list[str]:
        require(len(prompts) == len(self.outputs), "other prompts than items were asked")
        return self.outputs


def oracle_grades_by_hand() -> None:
    scorer: Any = method(__name__, wording="bare")
    rows = sandbox.rows("exam/mixed", split="test", n=72)
    outputs = _outputs(rows)
    found = scorer.ask(_Says(outputs), items_of(rows))
    exams: dict[str, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    unparsed = mattered = 0
    for row, output in zip(rows, outputs):
        points, answer = _grade(row, output, True)
        kind = "matching" if len(row["correct_answer"]) > 1 else "single"
        for name in (kind, "points"):
            exams[row["test_id"]][name] += points
        exams[row["test_id"]]["most"] += len(row["correct_answer"])
        unparsed += not answer
        mattered += points != _grade(row, output, False)[0]
    for name in ("points", "single", "matching"):
        equal(value(scorer, found, name), float(sum(e[name] for e in exams.values()) / len(exams)), name)
    total = sum(e["points"] for e in exams.values()) / sum(e["most"] for e in exams.values())
    equal(value(scorer, found, "share"), float(total), "share")
    equal(value(scorer, found, "unparsed"), unparsed / len(rows), "unparsed")
    equal(value(scorer, found, "mattered"), mattered / len(rows), "mattered")
    require(mattered > 0 and 0 < unparsed < len(rows), "the outputs are all of one kind")
