"""Repairs: a faulty program with its repair, and the repair again with the reason for it.

in      prompt (the task, the faulty program, the request), repair, guided_repair (the repair with its rationale, in
        whatever order); texts or messages. Optional tools.
out     GroupExample of two answers to one prompt, the repair first
trained all tokens of both answers, their end tokens included; never the prompt

max_length bounds the prompt with its longer answer. Messages go through the chat template, plain texts are joined as they
are (see `chat`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import GroupRows, needed


@dataclass(frozen=True)
class Repairs(GroupRows):
    paper: ClassVar[str] = "arXiv:2404.12636"
    cards: ClassVar[tuple[int, ...]] = (50,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("repair",), ("guided_repair",))
    optional: ClassVar[tuple[str, ...]] = ("tools",)

    def group(self, row: dict[str, Any]) -> tuple[Any, list[Any], list[float]]:
        repair, guided = needed(row, "repair"), needed(row, "guided_repair")
        if repair == guided:
            raise RowError("'repair' and 'guided_repair' are the same: there is no reason to learn from")
        return needed(row, "prompt"), [repair, guided], [1.0, 1.0]
