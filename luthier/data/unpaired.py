"""Unpaired: one prompt with one answer that was judged good or bad.

in      prompt, completion (texts or messages), label: true (good) or false (bad); optional tools
out     GroupExample of one answer, with score 1 or 0
trained all tokens of the answer, its end token included; never the prompt
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import GroupRows, needed

_JUDGED = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


@dataclass(frozen=True)
class Unpaired(GroupRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("completion",), ("label",))
    optional: ClassVar[tuple[str, ...]] = ("tools",)

    def group(self, row: dict[str, Any]) -> tuple[Any, list[Any], list[float]]:
        label = needed(row, "label")
        score = _JUDGED.get(str(label).lower())
        if score is None:
            raise RowError(f"'label' must be true or false, not {label!r}")
        return needed(row, "prompt"), [needed(row, "completion")], [score]
