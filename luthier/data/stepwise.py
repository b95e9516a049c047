"""Stepwise: a prompt, the steps of an answer, and of each step whether it is right (process supervision).

in      prompt, completions: the steps as a list; labels: true or false (or 1 and 0) for each
out     TaggedExample: prompt and steps as one text, `step_separator` behind every step
trained whether a step is right, at the last token of the step and its separator;  last_step_only: of the last step alone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.tags import RIGHT, WRONG, Bears, Span, steps_and_labels, text_of_steps
from luthier.data._tags import TaggedRows


@dataclass(frozen=True)
class Stepwise(TaggedRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("completions",), ("labels",))
    bears: ClassVar[Bears] = "end"
    label_names: tuple[str, ...] | None = (WRONG, RIGHT)
    step_separator: str = "\n"
    last_step_only: bool = False

    def spans(self, row: dict[str, Any]) -> tuple[str, list[Span], list[int]]:
        steps, labels = steps_and_labels(row)
        text, spans = text_of_steps(row.get("prompt"), steps, self.step_separator)
        first = len(steps) - 1 if self.last_step_only else 0
        return text, spans[first:], [int(label) for label in labels[first:]]
