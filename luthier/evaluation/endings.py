"""Endings: whether answers come to an end by themselves, and how long they are.

    ended   share of answers that reach an end token or a string of `stop` within `max_new_tokens`
    tokens  mean length, what was cut off at `max_new_tokens` included

A model without a habit of ending is punished by whatever reads its answers: this tells it from one that answers wrongly.
Chance:     none.
Cost:       one generation per item.
Paper:      none: what card 14 asks for beside every score.
Departures: fewer tokens count as better, all else being equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.subject import Subject, cut_at
from luthier.evaluation._family import Answers, Item, Scorer, need


@dataclass(frozen=True)
class Endings(Scorer):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (14,)
    metrics: ClassVar[dict[str, bool]] = {"ended": True, "tokens": False}
    proportions: ClassVar[frozenset[str]] = frozenset({"ended"})
    units: ClassVar[dict[str, str]] = {"tokens": "tokens"}
    sample: ClassVar[str] = "ended"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        said = subject.written([i.prompt for i in items], self.max_new_tokens, self.stop)
        texts = [cut_at(subject.tokenizer.decode(g.ids, skip_special_tokens=True), self.stop) for g in said]
        return self.answers(items, {"ended": [g.stopped for g in said], "tokens": [len(g.ids) for g in said]}, texts)
