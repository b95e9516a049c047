"""Candidates: the reference is among the first k answers of a beam search or sampler.

    em@k = share of items whose reference is one of the first k candidates        rises with k

    k   the ks; the decoder is asked for the largest of them
Blanks and line ends count as one blank on both sides; candidates that are then equal count once. Several references: any.
Cost:       max(k) answers an item.
Paper:      Weyssow et al., 2023, "Exploring Parameter-Efficient Fine-Tuning Techniques for Code Generation with Large
            Language Models", arXiv:2308.10462 (EM@k).
Departures: repeated candidates take no place, so that em@5 looks at five different answers where there are as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, need


@dataclass(frozen=True)
class Candidates(Scorer):
    paper: ClassVar[str] = "arXiv:2308.10462"
    cards: ClassVar[tuple[int, ...]] = (21, 63)
    metrics: ClassVar[dict[str, bool]] = {"em@1": True}
    proportions: ClassVar[frozenset[str]] = frozenset({"em@1"})
    sample: ClassVar[str] = "em@1"
    k: tuple[int, ...] = (1, 2, 5, 10)
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise LuthierError(f"candidates: k is {list(self.k)}: numbers of candidates, from 1 on")

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        need(items, "reference", self.name)
        asked = [i.prompt for i in items]
        found = subject.candidates(asked, max(self.k), self.max_new_tokens, self.stop)
        ranks = [_rank(texts, item) for texts, item in zip(found, items, strict=True)]
        stats = {f"em@{k}": [float(rank <= k) for rank in ranks] for k in sorted({1, *self.k})}
        stats["candidates"] = [float(len(_different(texts))) for texts in found]
        return self.answers(items, stats, [texts[0] if texts else "" for texts in found])

    def table(self, answers: Answers) -> dict[str, bool]:
        return {f"em@{k}": True for k in sorted({1, *self.k})}

    def details(self, answers: Answers) -> dict[str, Any]:
        """How many different candidates an item has."""
        return {"candidates": float(np.mean(answers.stats["candidates"]))}


def _bare(text: str) -> str:
    return " ".join(text.split())


def _different(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(_bare, texts)))


def _rank(texts: Sequence[str], item: Item) -> float:
    """Place of the first candidate that is right, from 1; infinite where none is."""
    right = {_bare(r) for r in item.accepted}
    return next((float(i) for i, text in enumerate(_different(texts), 1) if text in right), float("inf"))
