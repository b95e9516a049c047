"""Choice: the choices of a question ranked by their log-probability.

    accuracy       argmax_c logp(c | prompt)                       is the right one
    accuracy_norm  argmax_c logp(c | prompt) / characters(c)       is the right one
    margin         logp(right | prompt) - max of the others        moves before the ranking does

    choices        for rows that bring none of their own
    delimiter      stands between prompt and choice unless either brings its own blank; none after a list of messages
Ties:       count as wrong.
Chance:     mean of 1 / number of choices; it and the most frequent position are reported with the task.
Cost:       one forward per choice.
Paper:      Brown et al., 2020, arXiv:2005.14165, section 2.4; conventions of lm-evaluation-harness (acc, acc_norm), to
            which the numbers are equal.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, choice_logp, need, right_choice


@dataclass(frozen=True)
class Choice(Scorer):
    paper: ClassVar[str] = "arXiv:2005.14165"
    cards: ClassVar[tuple[int, ...]] = (16,)
    metrics: ClassVar[dict[str, bool]] = {"accuracy": True, "accuracy_norm": True, "margin": True}
    proportions: ClassVar[frozenset[str]] = frozenset({"accuracy", "accuracy_norm"})
    units: ClassVar[dict[str, str]] = {"margin": "nats"}
    sample: ClassVar[str] = "accuracy"
    choices: tuple[str, ...] = ()
    delimiter: str = " "

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        items = [i if i.choices else replace(i, choices=self.choices or None) for i in items]
        need(items, "choices", self.name)
        scores = choice_logp(subject, items, self.delimiter)
        right = [right_choice(i) for i in items]
        rows = [_judge(s, g, i.choices or ()) for s, g, i in zip(scores, right, items, strict=True)]
        stats = {k: [r[k] for r in rows] for k in (*self.metrics,)}
        said = [(i.choices or ())[int(s.argmax())] for s, i in zip(scores, items, strict=True)]
        floors = {"chance": float(np.mean([1 / len(i.choices or " ") for i in items]))} if items else {}
        position, share = _commonest(right)
        floors[f"always choice {position + 1}"] = share
        found = self.answers(items, stats, said, floors=floors)
        found.references = [(i.choices or ())[g] for i, g in zip(items, right, strict=True)]
        return found


def _judge(logp: np.ndarray, right: int, choices: Sequence[str]) -> dict[str, float]:
    others = np.delete(logp, right)
    per_character = logp / np.maximum(1, [len(c) for c in choices])
    return {
        "accuracy": float(logp[right] > others.max(initial=-np.inf)),
        "accuracy_norm": float(per_character[right] > np.delete(per_character, right).max(initial=-np.inf)),
        "margin": float(logp[right] - others.max()) if len(others) else 0.0,
    }


def _commonest(positions: Sequence[int]) -> tuple[int, float]:
    if not positions:
        return 0, float("nan")
    seen = np.bincount(positions)
    return int(seen.argmax()), float(seen.max() / len(positions))
