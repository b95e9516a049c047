"""Texts of which single tokens have a class: what the row types of token classification share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.batch import IGNORED, TaggedExample
from luthier.core.method import RowError
from luthier.core.tags import Bears, Span, tokens_of
from luthier.data._family import Encoded, RowType


@dataclass(frozen=True)
class TaggedRows(RowType):
    """One text a row, to a TaggedExample. A type says which spans of the text have which class, and `bears`."""

    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = TaggedExample
    bears: ClassVar[Bears]
    label_names: tuple[str, ...] | None = None

    def spans(self, row: dict[str, Any]) -> tuple[str, list[Span], list[int]]:
        """The text of a row, its spans in order, none over another, and the class of each."""
        raise NotImplementedError

    @property
    def bearer(self) -> Bears:
        return self.bears

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], indices: Sequence[int], tokenizer: Any
    ) -> list[Encoded | RowError]:
        out: list[Encoded | RowError] = []
        for row, index in zip(rows, indices):
            try:
                out.append(self._encoded(row, index, tokenizer))
            except RowError as error:
                out.append(error)
        return out

    def _encoded(self, row: dict[str, Any], index: int, tokenizer: Any) -> Encoded:
        text, spans, classes = self.spans(row)
        found, at = tokens_of(text, spans, self.bearer, tokenizer, None)
        marks = set() if all(at) else {"a tag lies on no token of its own"}
        if not (fits := self.fits(len(found["input_ids"]))):
            whole, keep_end = sum(map(len, at)), self.truncation_mode == "keep_end"
            found, at = tokens_of(text, spans, self.bearer, tokenizer, self.max_length, keep_end)
            marks |= {"cut", "answer cut"} if sum(map(len, at)) < whole else {"cut"}
        tags = [IGNORED] * len(found["input_ids"])
        for tag, tokens in zip(classes, at, strict=True):
            for t in tokens:
                tags[t] = tag
        if all(tag == IGNORED for tag in tags):
            raise RowError("no token has a tag" + ("" if fits else f" within max_length {self.max_length}: raise it"))
        return Encoded(TaggedExample(index, found["input_ids"], tags, found.get("token_type_ids")), marks)
