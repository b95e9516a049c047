"""Tagged: words, each with a class (names in a text, parts of speech, chunks).

in      tokens: the words as a list; ner_tags, pos_tags, chunk_tags or tags: a class for each, by name or by index. A tag
        of null or -100 marks a word that is not asked about
out     TaggedExample: the words joined by single spaces and tokenised as one text, as a model meets it in use
trained the class of each word, at its first token;  label_all_tokens: at each of its tokens

    tag_column   which column holds the tags, where rows have several
    label_names  class names in the order of their indices; found in the data when not given: names that the data set itself
                 stores, whole numbers by size, other names by alphabet
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from luthier.core.method import LuthierError, RowError
from luthier.core.tags import TAG_COLUMNS, Bears, Span, tag_column, text_of_words, words_and_tags
from luthier.data._tags import TaggedRows


@dataclass(frozen=True)
class Tagged(TaggedRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("tokens",), TAG_COLUMNS)
    chosen_by_option: ClassVar[bool] = True
    bears: ClassVar[Bears] = "begin"
    tag_column: Literal["auto", "ner_tags", "pos_tags", "chunk_tags", "tags"] = "auto"
    label_all_tokens: bool = False

    @property
    def bearer(self) -> Bears:
        return "all" if self.label_all_tokens else self.bears

    def settle(self, rows: Sequence[dict[str, Any]], names: Mapping[str, list[str]]) -> tuple[Self, list[str]]:
        columns, found = set(), set()
        for row in rows:
            try:
                columns.add(tag_column(row, self.tag_column))
                found |= {tag for tag in words_and_tags(row, self.tag_column)[1] if tag is not None}
            except RowError as error:
                if "tag_column" in str(error):  # of no single row
                    raise LuthierError(f"data: {error}") from None
            except TypeError:  # told with file and line when the row is encoded
                continue
        stored = next((names[c] for c in columns if names.get(c)), None)
        if not stored and found and all(isinstance(tag, int) for tag in found):
            stored = [str(k) for k in range(max(found) + 1)]
        told = self.label_names or tuple(stored or sorted(map(str, found)))
        return replace(self, label_names=told), [f"{len(told)} tags"]

    def spans(self, row: dict[str, Any]) -> tuple[str, list[Span], list[int]]:
        words, tags = words_and_tags(row, self.tag_column)
        text, spans = text_of_words(words)
        asked = [(span, self._index(tag)) for span, tag in zip(spans, tags, strict=True) if tag is not None]
        return text, [span for span, _ in asked], [index for _, index in asked]

    def _index(self, tag: Any) -> int:
        """Index of a class: by its name, or a whole number that is the index already."""
        names = self.label_names or ()
        if str(tag) in names:
            return names.index(str(tag))
        if isinstance(tag, int) and 0 <= tag < len(names):
            return tag
        raise RowError(f"tag {tag!r} is not one of {', '.join(names)}")
