"""Text: plain documents for language modelling.

in      text
out     TextExample: one document, with the begin token where the tokenizer adds one and an end token
trained every token but the begin token; the end token as well (append_eos)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.method import RowError
from luthier.data._family import Rendered, TextRows, needed


@dataclass(frozen=True)
class Text(TextRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("text",),)
    append_eos: bool = True

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        text = needed(row, "text")
        if not isinstance(text, str) or not text:
            raise RowError("'text' is empty" if text == "" else "'text' is not text")
        return [Rendered(text, [(0, len(text))], specials=True, close=self.append_eos)]
