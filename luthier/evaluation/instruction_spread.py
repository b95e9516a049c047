"""Instruction spread: how much a score depends on the wording of the instruction.

    x_km = share of the items of task k that are right under wording m
    accuracy = mean_k mean_m x_km      spread = mean_k sd_m x_km      worst = mean_k min_m x_km      best = mean_k max_m x_km
    seen, unseen, gap                  mean over wordings that are marked so, and seen less unseen

The standard deviation is over the wordings of a task, never over tasks.
    prompts  column: one question in every wording, in the same order in all rows of a task; without it, `prompt` alone
    task     column: the rows whose wordings belong together; without it, all
    seen     column: which wordings tuning has shown, one true or false for each
    max_new_tokens, stop   of answers that are generated; rows with choices are ranked by log-probability instead
    exact    a generated answer must equal the reference to the letter; else case, punctuation and articles are set aside
    delimiter  stands between prompt and choice unless either brings its own blank
Chance:     that of the task; 0 for the spread of a model that does not read instructions.
Cost:       one generation, or one forward per choice, for each wording.
Paper:      Sun et al., 2023, arXiv:2306.11270, section 4.
Departures: none. Choices are ranked by the sum of their tokens' log-probabilities, each in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, Stats, choice_logp, need, right_choice, same


@dataclass(frozen=True)
class InstructionSpread(Scorer):
    paper: ClassVar[str] = "arXiv:2306.11270"
    cards: ClassVar[tuple[int, ...]] = (35,)
    metrics: ClassVar[dict[str, bool]] = {"accuracy": True, "spread": False, "worst": True, "best": True}
    sample: ClassVar[str] = "accuracy"
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    exact: bool = False
    delimiter: str = " "

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        asked = [_wordings(i) for i in items]
        need([i for wordings in asked for i in wordings], "prompt", self.name)
        counts = {len(wordings) for wordings in asked}
        if len(counts) > 1:
            raise LuthierError(
                f"instruction_spread: rows have {min(counts)} to {max(counts)} wordings; give all equally many"
            )
        flat = [i for wordings in asked for i in wordings]
        right, said = self._choose(subject, flat) if items and items[0].choices else self._write(subject, flat)
        x = np.asarray(right, dtype=float).reshape(len(items), -1)  # (n, M)
        tasks = {name: k for k, name in enumerate(dict.fromkeys(str(i.row.get("task", "")) for i in items))}
        stats = {
            "accuracy": x.mean(1),
            "task": [tasks[str(i.row.get("task", ""))] for i in items],
            **{f"wording {m}": x[:, m] for m in range(x.shape[1])},
        }
        told = [i.row.get("seen") for i in items]
        if all(isinstance(s, list) and len(s) == x.shape[1] for s in told):
            stats |= {f"seen {m}": [float(s[m]) for s in told] for m in range(x.shape[1])}  # type: ignore[index]
        return self.answers(items, stats, said[:: max(1, x.shape[1])])

    def _write(self, subject: Subject, items: Sequence[Item]) -> tuple[list[bool], list[str]]:
        need(items, "reference", self.name)
        said = subject.generate([i.prompt for i in items], self.max_new_tokens, self.stop)
        return [any(self._equal(a, s) for a in i.accepted) for i, s in zip(items, said, strict=True)], list(said)

    def _equal(self, gold: str, said: str) -> bool:
        return gold.strip() == said.strip() if self.exact else same(gold, said)

    def _choose(self, subject: Subject, items: Sequence[Item]) -> tuple[list[bool], list[str]]:
        need(items, "choices", self.name)
        best = [int(s.argmax()) for s in choice_logp(subject, items, self.delimiter)]
        right = [b == right_choice(i) for b, i in zip(best, items, strict=True)]
        return right, [(i.choices or ())[b] for b, i in zip(best, items, strict=True)]

    def table(self, answers: Answers) -> dict[str, bool]:
        more = {"seen": True, "unseen": True, "gap": False} if "seen 0" in answers.stats else {}
        return dict(self.metrics) | more

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return False

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        return lambda stats, weights: _aggregate(metric, stats, weights)


def _wordings(item: Item) -> list[Item]:
    prompts = item.row.get("prompts")
    return [item] if not prompts else [replace(item, prompt=p) for p in prompts]


def _columns(stats: Stats, name: str) -> NDArray:
    """(n, M) columns "name 0", "name 1", ..."""
    return np.stack([stats[f"{name} {m}"] for m in range(sum(k.startswith(f"{name} ") for k in stats))], 1)


def _aggregate(metric: str, stats: Stats, weights: NDArray) -> NDArray:
    """(R,): the mean over the tasks that a resample holds."""
    x, found = _columns(stats, "wording"), []
    seen = _columns(stats, "seen") if "seen 0" in stats else None
    for task in np.unique(stats["task"]):
        mine = stats["task"] == task
        w = weights[:, mine]  # (R, n)
        with np.errstate(invalid="ignore"):
            shares = w @ x[mine] / w.sum(1, keepdims=True)  # (R, M)
        marked = None if seen is None else seen[mine][0] > 0
        found.append(_of_task(metric, shares, marked))
    told = np.stack(found, 1)  # (R, K)
    there = np.isfinite(told)
    with np.errstate(invalid="ignore"):
        return np.where(there, told, 0).sum(1) / there.sum(1)


def _of_task(metric: str, shares: NDArray, seen: NDArray | None) -> NDArray:
    if metric == "spread":
        return (shares - shares[:, :1]).std(1)  # exactly 0 where wordings agree
    if metric in ("worst", "best"):
        return shares.min(1) if metric == "worst" else shares.max(1)
    if metric == "accuracy" or seen is None:
        return shares.mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = shares[:, seen].sum(1) / seen.sum()
        new = shares[:, ~seen].sum(1) / (~seen).sum()
    return {"seen": known, "unseen": new, "gap": known - new}[metric]
