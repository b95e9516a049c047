"""Multi-label: several labels of a text at once, from a head's probabilities or from a generated list.

    said = {l : sigma(z_l) > t_l}                             a class head, z (L,)
    said = the parts of the generated text between separators  a language model

    labels      the label set, for language models; a head brings its own names
    separator   between labels of a generated list; parts are compared whole, never as substrings ("Media" is not in
                "Social Media"), and a part that is no label counts as a wrong one
    shots       rows of `train` that are written in front of every text that a language model is asked about, drawn by
                `shot_seed`: n-shot prompting;  shown  how one is written, of its columns and {labels}
    threshold   t, one number for all labels, or one for each
The metrics are those of `_labels.py`; the main one is macro-F1.
Chance:     always the most frequent label.
Cost:       one forward an item (head), or one generation.
Paper:      metrics of Buchner et al., 2023, arXiv:2309.12075, section 4. Definitions as in scikit-learn.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.shots import WithExamples, drawn
from luthier.evaluation._labels import (
    Answers,
    Item,
    LabelSets,
    LuthierError,
    Subject,
    gold_labels,
    head_names,
    labelled_items,
    need,
)


@dataclass(frozen=True)
class Multilabel(LabelSets):
    paper: ClassVar[str] = "arXiv:2309.12075"
    cards: ClassVar[tuple[int, ...]] = (24,)
    labels: tuple[str, ...] = ()
    separator: str = ";"
    threshold: float | tuple[float, ...] = 0.5
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    train: Any = None
    shots: int = 0
    shot_seed: int = 0
    shown: str = "{text} => {labels}"

    def __post_init__(self) -> None:
        if self.shots and self.train is None:
            raise LuthierError("multilabel: shots are rows of train, which is missing")

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        gold = gold_labels(items)
        if subject.task == "classification":
            need(items, "text", self.name)
            names = head_names(subject)
            self._known(items, gold, names)
            p = subject.class_probabilities([i.text for i in items])  # (n, L)
            least = [self.threshold] * len(names) if isinstance(self.threshold, float) else list(self.threshold)
            if len(least) != len(names) or p.shape[1] != len(names):
                raise LuthierError(
                    f"multilabel: {len(least)} thresholds and {p.shape[1]} outputs for {len(names)} labels"
                )
            said = [[n for n, x, t in zip(names, row, least, strict=True) if x > t] for row in p]
        else:
            need([i for i in items if i.prompt is None], "text", self.name)
            names = list(self.labels) or sorted({label for g in gold for label in g})
            self._known(items, gold, names)
            asked = [i.prompt if i.prompt is not None else str(i.text) for i in items]
            if self.shots:
                subject = WithExamples(subject, drawn(self.written(), self.shots, self.shot_seed), "\n")  # type: ignore[assignment]
            said = [self.parse(o) for o in subject.generate(asked, self.max_new_tokens, self.stop)]
        return self.sets(items, gold, said, names)

    def written(self) -> list[str]:
        """Every training row as it would stand in front of a text."""
        known = labelled_items(self.train)
        lists = (f"{self.separator} ".join(labels) for labels in gold_labels(known))
        return [self.shown.format_map({**i.row, "labels": told}) for i, told in zip(known, lists, strict=True)]

    def parse(self, output: str) -> list[str]:
        """The labels of a generated list, in order, each once."""
        parts = [part.strip() for part in output.split(self.separator)]
        return list(dict.fromkeys(part for part in parts if part))

    def _known(self, items: Sequence[Item], gold: Sequence[Sequence[str]], names: Sequence[str]) -> None:
        for item, labels in zip(items, gold, strict=True):
            for label in labels:
                if label not in names:
                    raise LuthierError(f"row {item.id}: label '{label}' is none of {', '.join(names)}")
