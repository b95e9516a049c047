"""Aspects: how good answers are in several respects, each scored by a judge of yours and never summed into one number.

    aspect = mean of the judge's scores from 1 to 5              over the answers whose score could be read
    judged = share of answers with a readable score in every aspect;  words = mean length of an answer in words
    against two:   aspect = share of items on which the answer is better, a tie counting one half
                   steady = share of judgements that do not depend on which of the two answers was shown first

    judge_by    "module:function", or {model: NAME}: see evaluation/_judges.py, where two that need no model are as well
    aspects     what is scored; "safety" is meant for a task of its own with harmful prompts
    against     "base" or "reference": the judge compares with the untuned model's answer, or with the row's own, once in each
                order; it is better or worse only where both orders say so
    by          a column (kind of task, topic): means by its values are told as well
What could not be read is left out of a mean and counted: `judged`, and by aspect in the details. Never is it given a score.
Lengths stand beside the scores because judges tend to like long answers. The judge does not learn who wrote an answer.
Test:       swaps of base and tuned; words are told without a verdict. Both sides must be judged by the same judge.
Cost:       one generation and one judgement per prompt, two where answers are compared.
Paper:      Lin et al., 2024, "The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning",
            arXiv:2312.01552, section 4 (just-eval-instruct).
Departures: the judge's instructions are our own, no set of prompts comes with it, and missing scores stay missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from luthier.core.subject import Subject
from luthier.evaluation._judges import Aggregate, Answers, Case, Item, TextScorer, Verdicts, judge_of, need, read, shown

FIVE = ("helpfulness", "clarity", "factuality", "depth", "engagement")


@dataclass(frozen=True)
class Aspects(TextScorer):
    paper: ClassVar[str] = "arXiv:2312.01552"
    cards: ClassVar[tuple[int, ...]] = (6,)
    metrics: ClassVar[dict[str, bool]] = {**dict.fromkeys(FIVE, True), "words": True, "judged": True}
    proportions: ClassVar[frozenset[str]] = frozenset({"judged"})
    units: ClassVar[dict[str, str]] = {"words": "words"}
    sample: ClassVar[str] = "scaled"

    judge_by: Any = ""
    aspects: tuple[str, ...] = FIVE
    against: Literal["", "base", "reference"] = ""
    by: str = ""
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    keep_texts: bool = True

    @classmethod
    def example(cls) -> Self:
        return cls(judge_by="luthier.evaluation._judges:overlap")

    def check(self, items: Sequence[Item]) -> None:
        if self.against == "reference":
            need(items, "reference", self.name)

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        self.check(items)
        verdicts = judge_of(self.judge_by, subject, self.name)
        said = subject.generate([i.prompt for i in items], self.max_new_tokens, self.stop)
        return self._answers(said, items, verdicts, None if base is None else dict(zip(base.ids, base.outputs)))

    def score(self, outputs: Sequence[str], items: Sequence[Item]) -> Answers:
        return self._answers(outputs, items, judge_of(self.judge_by, None, self.name), None)

    def judge(self, output: str, item: Item) -> dict[str, float]:
        return {k: float(v[0]) for k, v in self.score([output], [item]).stats.items()}

    def _answers(
        self, said: Sequence[str], items: Sequence[Item], verdicts: Verdicts, base: dict[str, str] | None
    ) -> Answers:
        if not self.against:
            cases = [Case(shown(i.prompt), (text,), i.row) for i, text in zip(items, said, strict=True)]
            found = [read(v, self.aspects) for v in verdicts(cases, self.aspects)]
            columns = {a: np.array([scores[a] for scores, _ in found]) for a in self.aspects}
            reasons, extra = [why for _, why in found], {"scaled": (_rows(columns) - 1) / 4}
        else:
            columns, steady, reasons = self._compared(said, items, verdicts, base)
            extra = {"steady": steady, "scaled": _rows(columns)}
        stats = columns | extra | {
            "words": np.array([len(text.split()) for text in said]),
            "judged": np.isfinite(_rows(columns)),
        }  # fmt: skip
        notes = [{"by": str(i.row.get(self.by, "")), "reasons": why} for i, why in zip(items, reasons, strict=True)]
        return self.answers(items, stats, said, notes=notes)

    def _compared(
        self, said: Sequence[str], items: Sequence[Item], verdicts: Verdicts, base: dict[str, str] | None
    ) -> tuple[dict[str, NDArray], NDArray, list[str]]:
        """1 better, 0 worse, a half otherwise, by aspect; whether the order did not matter; reasons of both orders."""
        if self.against == "base" and base is None:  # the base beside itself
            half = np.full(len(items), 0.5)
            return dict.fromkeys(self.aspects, half), np.ones(len(items)), [""] * len(items)
        other = [(base or {})[i.id] if self.against == "base" else str(i.reference) for i in items]
        first, second = (
            [
                read(v, self.aspects, between=True)
                for v in verdicts([Case(shown(i.prompt), pair, i.row) for i, pair in zip(items, pairs)], self.aspects)
            ]
            for pairs in (list(zip(said, other, strict=True)), list(zip(other, said, strict=True)))
        )
        columns, steady = {}, np.ones(len(items))
        for a in self.aspects:
            one, two = (np.array([scores[a] for scores, _ in order]) for order in (first, second))
            missing, agree = np.isnan(one + two), one == 1 - two
            columns[a] = np.where(missing, np.nan, np.where(agree, one, 0.5))
            steady *= np.where(missing, np.nan, agree)
        return columns, steady, [f"{a[1]} | {b[1]}" for a, b in zip(first, second)]

    def table(self, answers: Answers) -> dict[str, bool]:
        own = dict.fromkeys(self.aspects, True)
        return own | ({"steady": True} if self.against else {}) | {"words": True, "judged": True}

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return metric in ("words", "judged")  # the others may be missing for some items

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        return lambda stats, weights: _mean_of_known(stats[metric], weights)

    def verdict(self, metric: str, low: float, high: float) -> str | None:
        return "same" if metric == "words" else None

    def details(self, answers: Answers) -> dict[str, Any]:
        """What was not judged, how often the answer was better or worse, means by the values of `by`, and the reasons."""
        columns = {a: answers.stats[a] for a in self.aspects}
        out: dict[str, Any] = {
            "items": len(answers), "judged": int(answers.stats["judged"].sum()),
            "missing": {a: int(np.isnan(c).sum()) for a, c in columns.items()},
        }  # fmt: skip
        if self.against:
            out["outcomes"] = {
                a: {n: int((c == v).sum()) for n, v in (("better", 1), ("tie", 0.5), ("worse", 0))}
                for a, c in columns.items()
            }
        groups = [note["by"] for note in answers.notes] if self.by else []
        if groups:
            out["by"] = {
                g: {"items": groups.count(g)} | {
                    a: _number(_mean_of_known(c, np.array([[float(x == g) for x in groups]]))[0]) for a, c in columns.items()
                } for g in sorted(set(groups))
            }  # fmt: skip
        told = {i: note["reasons"] for i, note in zip(answers.ids, answers.notes) if note["reasons"].strip(" |")}
        return out | ({"reasons": told} if told else {})

    def _constant(self, items: Sequence[Item]) -> dict[str, float]:
        return {}  # a judge may cost money


def _rows(columns: dict[str, NDArray]) -> NDArray:
    """Mean over aspects (n,), NaN where one is missing."""
    return np.mean(list(columns.values()), axis=0)


def _mean_of_known(values: NDArray, weights: NDArray) -> NDArray:
    """(n,) and (R, n) to (R,): over the items that have a value."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return weights[:, known] @ values[known] / weights[:, known].sum(1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
