"""Format lock: how often a model answers an unrelated task with a label of the task that it was tuned on.

    format_lock = |{i : said_i is one of `labels` and no right answer of item i}| / n              in [0, 1], lower is better

    labels  what the tuned task has for answers: [T, F]
said_i is what the model writes up to `stop`: its short answer, or its first word. Rows may have a reference; an answer that is
right does not count, whatever words it is made of.
Chance:     0 for a model that never met the labels; 1 for one that can do nothing else.
Cost:       one generation per item.
Paper:      Wang et al., 2024, arXiv:2211.00635, section 3 (share of "True" and "False" among answers to other tasks).
Departures: right answers do not count, so that tasks whose answers overlap with the labels can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from luthier.core.method import LuthierError
from luthier.evaluation._family import Item, TextScorer, same, short_answer


@dataclass(frozen=True)
class FormatLock(TextScorer):
    paper: ClassVar[str] = "arXiv:2211.00635"
    cards: ClassVar[tuple[int, ...]] = (57,)
    metrics: ClassVar[dict[str, bool]] = {"format_lock": False}
    sample: ClassVar[str] = "format_lock"
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 8
    stop: tuple[str, ...] = ("\n",)

    @classmethod
    def example(cls) -> Self:
        return cls(labels=("0", "1", "2"))

    def check(self, items: Sequence[Item]) -> None:
        if not self.labels:
            raise LuthierError(
                "format_lock: labels is empty: give the answers of the tuned task, as in labels: [yes, no]"
            )

    def judge(self, output: str, item: Item) -> dict[str, float]:
        said = [short_answer(output), *output.split(maxsplit=1)[:1]]
        right = any(same(gold, s) for gold in item.accepted for s in said)
        return {"format_lock": float(not right and any(same(label, s) for label in self.labels for s in said))}

    def _constant(self, items: Sequence[Item]) -> dict[str, float]:
        return {}
