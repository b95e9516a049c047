"""Exam points: answers graded as an exam does, with partial credit for matching tasks.

    said      letters after the last keyword, up to the first "<"; look-alikes (Latin A, Cyrillic А) become the task's own code
    points    max if said = right;  matching tasks, said not longer than m: max * (places that agree) / m;  else 0
    share     sum of points / sum of max                       points, single, matching   sum an exam: mean over exams
    unparsed  share of outputs whose letters are no answer: none, more than m, or no code of the task
    mattered  share of items whose points depend on the look-alikes
    permuted  share of the points where options stand under other codes, codes put back before grading
    steady    share of such answers that are the same option as without

    target, wording  as in data/exam: the prompt is that of training
    permutations     how many other orders each task is asked in; 0: neither `permuted` nor `steady`
    source           a sandbox path ("exam/mixed") for a scorer that brings its rows;  n, seed  how many, which
Chance:     a task with one right code: 1 / options.
Cost:       1 + permutations generations an item.
Paper:      Syromiatnikov et al., 2025, arXiv:2503.13988; the grading is that of the national multi-subject test.
Departures: look-alikes, the share of unparsed outputs and permutations are additions; lower case is no code.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from luthier.core import exam
from luthier.core.method import LuthierError, RowError
from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, weighted_mean

SHARES = {"share": "got", "permuted": "got_permuted"}
"""Metric -> the statistic whose sum is divided by that of `most`; every other metric is the mean of its own."""


@dataclass(frozen=True)
class ExamPoints(Scorer):
    paper: ClassVar[str] = "arXiv:2503.13988"
    cards: ClassVar[tuple[int, ...]] = (34,)
    metrics: ClassVar[dict[str, bool]] = {
        "share": True, "points": True, "single": True, "matching": True, "unparsed": False, "mattered": False,
    }  # fmt: skip
    units: ClassVar[dict[str, str]] = dict.fromkeys(("points", "single", "matching"), "an exam")
    sample: ClassVar[str] = "got"
    target: exam.Form = "cot+topic"
    wording: str | dict[str, str] = "en"
    max_new_tokens: int = 2048
    stop: tuple[str, ...] = ()
    permutations: int = 0
    source: str = ""
    n: int = 40
    seed: int = 0

    @classmethod
    def example(cls) -> Self:
        return cls(source="exam/mixed", wording="bare", max_new_tokens=48)

    def rows(self) -> list[dict[str, Any]] | None:
        if not self.source:
            return None
        from luthier import sandbox

        words = exam.wording(self.wording)
        found = sandbox.rows(self.source, split="test", n=self.n, seed=self.seed)
        tasks = [exam.task_of(row, words) for row in found]
        return [
            {**row, "prompt": self._prompt(t), "completion": exam.target(t, words, self.target)}
            for row, t in zip(found, tasks, strict=True)
        ]  # fmt: skip

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        words = exam.wording(self.wording)
        tasks = [self._task(item) for item in items]
        turned = [
            (i, *exam.permuted(t, random.Random(f"{self.seed}/{k}/{t.question}/{t.options}")))
            for i, t in enumerate(tasks)
            for k in range(self.permutations)
        ]
        asked = [self._prompt(t) for t in (*tasks, *(t for _, t, _ in turned))]
        outputs = subject.generate(asked, self.max_new_tokens, self.stop)
        said = [exam.letters(o, words, t.codes) for o, t in zip(outputs, tasks, strict=False)]
        raw = [exam.points(t, exam.letters(o, words)) for o, t in zip(outputs, tasks, strict=False)]
        got = [exam.points(t, s) for t, s in zip(tasks, said, strict=True)]
        size = len(tasks) / max(1, len({t.exam for t in tasks}))  # tasks an exam: means over tasks become sums an exam
        stats: dict[str, Any] = {
            "got": got, "most": [t.points for t in tasks], "points": [size * g for g in got],
            "single": [size * g * (not t.matching) for g, t in zip(got, tasks, strict=True)],
            "matching": [size * g * t.matching for g, t in zip(got, tasks, strict=True)],
            "unparsed": [not exam.parses(t, s) for t, s in zip(tasks, said, strict=True)],
            "mattered": [g != r for g, r in zip(got, raw, strict=True)],
        }  # fmt: skip
        if turned:
            stats |= self._turned(tasks, said, turned, outputs[len(tasks) :], words)
        found = self.answers(items, stats, outputs[: len(tasks)])
        found.prompts = [prompt[0]["content"] for prompt in asked[: len(tasks)]]
        found.references = [";".join(t.correct) for t in tasks]
        return found

    def _task(self, item: Item) -> exam.ExamTask:
        try:
            task = exam.task_of(item.row, exam.wording(self.wording))
        except RowError as error:
            raise LuthierError(f"exam_points: row {item.id}: {error}") from None
        if not task.correct or any(c not in task.codes for c in task.correct):
            raise LuthierError(f"exam_points: row {item.id} has no right option whose code is a letter: leave it out")
        return task

    def _prompt(self, task: exam.ExamTask) -> list[dict[str, str]]:
        return [{"role": "user", "content": exam.prompt(task, exam.wording(self.wording), self.target)}]

    def _turned(
        self, tasks: Sequence[exam.ExamTask], said: Sequence[str], turned: Sequence[Any], outputs: Sequence[str],
        words: exam.Wording,
    ) -> dict[str, list[float]]:  # fmt: skip
        """Mean points of an item over its permutations, and how often the same option was meant."""
        points, same = np.zeros(len(tasks)), np.zeros(len(tasks))
        for (i, task, old), output in zip(turned, outputs, strict=True):
            back = exam.restored(exam.letters(output, words, task.codes), old)
            points[i] += exam.points(tasks[i], back) / self.permutations
            same[i] += (back == said[i]) / self.permutations
        return {"got_permuted": points.tolist(), "steady": same.tolist()}

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**self.metrics, **({"permuted": True, "steady": True} if "steady" in answers.stats else {})}

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if metric not in SHARES:
            return lambda stats, weights: weighted_mean(stats[metric], weights)
        return lambda stats, weights: (weights @ stats[SHARES[metric]]) / (weights @ stats["most"])
