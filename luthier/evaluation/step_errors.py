"""Step errors: of each step of an answer whether it is right, and where the first wrong one is.

    accuracy  steps judged right / steps
    found     of the answers with a wrong step, the share whose first wrong step is the one that is said
    kept      of the answers without one, the share in which no step is said to be wrong
    f1        2 found kept / (found + kept)

A step is said to be wrong where the head's probability of "right" is below `threshold`; one beyond the model's window is said
to be right.
Cost:       one forward an item.
Paper:      f1: Zheng et al., 2024, "ProcessBench: Identifying Process Errors in Mathematical Reasoning", arXiv:2412.06559.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import NDArray

from luthier.core.method import LuthierError, RowError
from luthier.core.subject import Subject
from luthier.core.tags import RIGHT, WRONG, steps_and_labels, text_of_steps, tokens_of
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, ratio


@dataclass(frozen=True)
class StepErrors(Scorer):
    paper: ClassVar[str] = "arXiv:2412.06559"
    cards: ClassVar[tuple[int, ...]] = (33,)
    head: ClassVar[str] = "token_classification"
    outputs: ClassVar[int] = 2
    metrics: ClassVar[dict[str, bool]] = {"f1": True, "found": True, "kept": True, "accuracy": True}
    sample: ClassVar[str] = "accuracy"
    threshold: float = 0.5
    step_separator: str = "\n"

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        self.outputs_of(subject)
        texts, truth, placed = [], [], []
        for item in items:
            try:
                steps, labels = steps_and_labels(item.row)
                text, spans = text_of_steps(item.row.get("prompt"), steps, self.step_separator)
            except RowError as error:
                raise LuthierError(f"{self.name}: row {item.id}: {error}") from None
            texts.append(text)
            truth.append(labels)
            placed.append(tokens_of(text, spans, "end", subject.tokenizer, subject.window))
        at = [[t for tokens in steps for t in tokens] for _, steps in placed]
        found = subject.tag_probabilities([(e["input_ids"], t) for (e, _), t in zip(placed, at)])
        said = []
        for (_, ends), p in zip(placed, found, strict=True):
            right = iter(p[:, 1] >= self.threshold)
            said.append([bool(next(right)) if tokens else True for tokens in ends])
        answers = self.answers(items, statistics(truth, said), [_words(s) for s in said])
        answers.prompts, answers.references = texts, [_words(t) for t in truth]
        return answers

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return False

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if metric == "accuracy":
            return lambda stats, w: ratio(w @ stats["agree"], w @ stats["steps"])
        return lambda stats, w: _rates(stats, w)[metric]


def statistics(truth: Sequence[Sequence[bool]], said: Sequence[Sequence[bool]]) -> dict[str, list[float]]:
    """Of each answer: steps judged right, steps, whether it has a wrong one, and whether the first of them was named."""
    agree = [float(sum(a == b for a, b in zip(t, s, strict=True))) for t, s in zip(truth, said, strict=True)]
    steps = [float(len(t)) for t in truth]
    return {
        "agree": agree, "steps": steps, "accuracy": [a / n for a, n in zip(agree, steps)],
        "broken": [float(not all(t)) for t in truth],
        "named": [float(_first_wrong(t) == _first_wrong(s)) for t, s in zip(truth, said)],
    }  # fmt: skip


def _first_wrong(steps: Sequence[bool]) -> int:
    return list(steps).index(False) if False in steps else -1


def _rates(stats: dict[str, NDArray], w: NDArray) -> dict[str, NDArray]:
    broken, named = stats["broken"], stats["named"]
    found, kept = ratio(w @ (broken * named), w @ broken), ratio(w @ ((1 - broken) * named), w @ (1 - broken))
    return {"found": found, "kept": kept, "f1": ratio(2 * found * kept, found + kept)}


def _words(steps: Sequence[bool]) -> str:
    return " ".join(RIGHT if s else WRONG for s in steps)
