"""Stopping: the answer is right, and the model stops right after it.

    exact    the whole answer is the reference, and it ended by itself
    stopped  it ended by itself, whatever it says
    prefix   it begins with the reference, whatever follows
    length   its characters, what was cut off included

A model that knows the answers and never stops has prefix without exact; one that learned to stop and not to listen has
stopped without prefix. Blanks at both ends do not count; several references: any.
Cost:       one generation per item.
Paper:      Hewitt et al., 2024, "Instruction Following without Instruction Tuning", arXiv:2409.14254: what separates a base
            model from one that follows instructions.
Departures: the paper has answers judged in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, need


@dataclass(frozen=True)
class Stopping(Scorer):
    paper: ClassVar[str] = "arXiv:2409.14254"
    cards: ClassVar[tuple[int, ...]] = (14, 31)
    metrics: ClassVar[dict[str, bool]] = {"exact": True, "stopped": True, "prefix": True, "length": False}
    proportions: ClassVar[frozenset[str]] = frozenset({"exact", "stopped", "prefix"})
    units: ClassVar[dict[str, str]] = {"length": "characters"}
    sample: ClassVar[str] = "exact"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        need(items, "reference", self.name)
        said = subject.said([i.prompt for i in items], self.max_new_tokens, self.stop)
        rows = [_judge(text.strip(), ended, item) for (text, ended), item in zip(said, items, strict=True)]
        stats = {metric: [row[metric] for row in rows] for metric in self.metrics}
        return self.answers(items, stats, [text for text, _ in said])


def _judge(said: str, ended: bool, item: Item) -> dict[str, float]:
    right = [gold.strip() for gold in item.accepted]
    return {
        "exact": float(ended and said in right), "stopped": float(ended), "prefix": float(any(map(said.startswith, right))),
        "length": float(len(said)),
    }  # fmt: skip
