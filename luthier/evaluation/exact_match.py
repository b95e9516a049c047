"""Exact match: the generated answer equals the reference, with looser graders beside it.

    exact_match   equal after normalising: case, punctuation, articles, number words, and units that one side omits
    contains      the reference's words stand in the output, next to each other ("126" is not in "1260")
    extracted     exact_match of the part after "the answer is" / "Answer:", else of the first line

They are reported side by side because the choice of grader can change the story: exact match punishes a chatty
answer, `contains` rewards one that lists everything. A row may accept several references (a list): any one counts.
Chance:     the score of giving always the most frequent reference is reported with the task.
Cost:       one generation per item.
Paper:      normalisation after SQuAD, Rajpurkar et al., 2016, arXiv:1606.05250; graders of card 16, step 7.
Departures: number words and units are normalised too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._family import Item, TextScorer, contains, same, short_answer


@dataclass(frozen=True)
class ExactMatch(TextScorer):
    paper: ClassVar[str] = "arXiv:1606.05250"
    cards: ClassVar[tuple[int, ...]] = (16,)
    metrics: ClassVar[dict[str, bool]] = {"exact_match": True, "contains": True, "extracted": True}
    proportions: ClassVar[frozenset[str]] = frozenset(metrics)
    sample: ClassVar[str] = "exact_match"
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()

    def judge(self, output: str, item: Item) -> dict[str, float]:
        short = short_answer(output)
        return {
            "exact_match": float(any(same(gold, output) for gold in item.accepted)),
            "contains": float(any(contains(gold, output) for gold in item.accepted)),
            "extracted": float(any(same(gold, short) for gold in item.accepted)),
        }
