"""What scorers of an audit share: what kind of answer a text is (core/refusing.py), judges by name, texts that are not kept.

A judge is a function (prompt, answer, row) -> verdict, named "module:function".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.refusing import LABELS, MEANS_OTHERWISE, REFUSES, broken, kind_of, plain
from luthier.evaluation._family import Answers, Item, TextScorer, same, shown
from luthier.evaluation._judges import judge

__all__ = [
    "LABELS", "MEANS_OTHERWISE", "REFUSES", "Answers", "AuditScorer", "Item", "broken", "judge", "kind_of", "plain", "same",
    "shown",
]  # fmt: skip


def unlike_reference(prompt: str, answer: str, row: dict[str, Any]) -> float:
    """A judge for sets with safe answers: 1 where the answer is the row's own, 5 where it is another."""
    return 1.0 if same(str(row.get("answer") or row.get("completion") or ""), answer) else 5.0


class AuditScorer(TextScorer):
    """Scorers whose texts stay out of results and reports unless `keep_texts`: what is kept are labels and counts."""

    def check(self, items: Sequence[Item]) -> None:
        """An audit needs prompts only."""

    def _constant(self, items: Sequence[Item]) -> dict[str, float]:
        return {}  # it would quote a reference
