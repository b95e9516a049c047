"""Ranked: one prompt with several answers, each with a score or a rank.

in      prompt, completions (texts, or lists of messages) and scores, the higher the better, or ranks, 1 the best;
        optional tools
out     GroupExample of all answers in their order, with scores; equal ones say nothing about their order
trained all tokens of all answers, their end tokens included; never the prompt

The first of the best answers is the one that an objective imitates: put a reference answer first. Rows may hold any number
of answers, one included. max_length bounds the prompt with its longest answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import GroupRows, needed


@dataclass(frozen=True)
class Ranked(GroupRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (39,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("completions",), ("scores", "ranks"))
    optional: ClassVar[tuple[str, ...]] = ("tools",)

    def group(self, row: dict[str, Any]) -> tuple[Any, list[Any], list[float]]:
        answers = needed(row, "completions")
        ranks = row.get("scores") is None
        told = needed(row, "ranks" if ranks else "scores")
        name = "ranks" if ranks else "scores"
        if not isinstance(answers, list) or not answers:
            raise RowError("'completions' must be a list of answers")
        if not isinstance(told, list) or len(told) != len(answers):
            raise RowError(f"'{name}' must have one number for each of {len(answers)} completions")
        if not all(isinstance(x, int | float) for x in told):
            raise RowError(f"'{name}' must be numbers")
        return needed(row, "prompt"), answers, [-float(x) if ranks else float(x) for x in told]
