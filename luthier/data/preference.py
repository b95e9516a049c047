"""Preference: one prompt with a better and a worse answer.

    in      prompt, chosen, rejected (texts or messages); without prompt, what chosen and rejected have in common at
            their beginning is the prompt. Optional score_chosen, score_rejected, tools.
    out     GroupExample of two answers, chosen first; scores as given, else 1 and 0
    trained all tokens of both answers, their end token included; never the prompt

max_length bounds the prompt with its longer answer. Messages go through the chat template, plain texts are joined as
they are (see `chat`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import GroupRows, needed


@dataclass(frozen=True)
class Preference(GroupRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("chosen",), ("rejected",))
    optional: ClassVar[tuple[str, ...]] = ("prompt", "tools", "score_chosen", "score_rejected")

    def group(self, row: dict[str, Any]) -> tuple[Any, list[Any], list[float]]:
        chosen, rejected = needed(row, "chosen"), needed(row, "rejected")
        if chosen == rejected:
            raise RowError("'chosen' and 'rejected' are the same")
        prompt = row.get("prompt")
        if isinstance(chosen, list) and chosen[:1] and chosen[0].get("role") != "assistant":
            prompt = None  # whole conversations: the prompt is in them
        better, worse = row.get("score_chosen"), row.get("score_rejected")
        scores = [1.0, 0.0] if better is None or worse is None else [float(better), float(worse)]
        return prompt, [chosen, rejected], scores
