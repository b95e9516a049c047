"""Segments: a text in pieces, each said to be trained or not.

in      segments: [{text, label: true|false}]; nothing is added, not even special tokens: write them in the texts
out     TextExample: the pieces joined, tokenised as one text
trained the pieces with label true; a token over the border of two pieces is trained if either is
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import Rendered, TextRows, needed


@dataclass(frozen=True)
class Segments(TextRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("segments",),)

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        pieces = needed(row, "segments")
        if isinstance(pieces, str):
            try:
                pieces = json.loads(pieces)
            except json.JSONDecodeError as error:
                raise RowError(f"'segments' is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(pieces, list) or not pieces:
            raise RowError("'segments' is not a list of {text, label}")
        text, spans = "", []
        for i, piece in enumerate(pieces):
            said = piece.get("text") if isinstance(piece, Mapping) else None
            if not isinstance(said, str) or piece.get("label") not in (True, False):
                raise RowError(f"segments[{i}] needs `text` and `label: true` or `label: false`")
            if piece["label"] and said:
                spans.append((len(text), len(text) + len(said)))
            text += said
        return [Rendered(text, spans)]
