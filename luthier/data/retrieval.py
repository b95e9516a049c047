"""Retrieval: a query with a document that answers it, and documents that do not.

    in      query or anchor, positive; optional negative or negatives (a text or a list of them), relevant (ids of the
            documents of the corpus that answer the query)
    out     SearchExample: query, positive, negatives, each with the tokenizer's own special tokens, and their identities
    trained no token; the positive is to be found

    max_length    tokens of a document (of query and document together where they are paired)
    query_length  tokens of a query; null: max_length
    paired        query and document are one sequence each, for a model that reads them together
    hard_negatives  each row is made up to so many negatives from what BM25 finds; needs the extra `retrieval`
    candidates    the negatives are drawn from so many documents at the head of the list
    corpus        source of the documents that are searched (rows with `text`; `title` and `id` or `_id` where there are);
                  null: all documents of the rows
The identity of a text is the text: the same document under two queries is one. A mined negative is never a positive of its
query in any row of the source, or one of `relevant`; a row whose own negative is its positive is rejected. Where answers are
not all known by `relevant`, split rows by query (data.group: query): what a row left out says may otherwise be drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.batch import SearchExample
from luthier.core.method import LuthierError, RowError
from luthier.core.subject import separates
from luthier.data._family import Encoded, RowType
from luthier.data._mining import corpus_of, with_negatives
from luthier.data._tokens import whole

_BETWEEN = "\n"
"""Between query and document where the tokenizer itself puts nothing between them."""


@dataclass(frozen=True)
class Retrieval(RowType):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33, 40)
    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = SearchExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("query", "anchor"), ("positive",))
    optional: ClassVar[tuple[str, ...]] = ("negative", "negatives", "relevant")
    query_length: int | None = None
    paired: bool = False
    hard_negatives: int = 0
    candidates: int = 100
    corpus: Any = None

    def __post_init__(self) -> None:
        if self.hard_negatives < 0 or self.candidates < 1:
            raise LuthierError("data: hard_negatives must be at least 0, candidates at least 1")
        if self.corpus is not None and not self.hard_negatives:
            raise LuthierError(
                "data.corpus is what hard negatives are drawn from: say hard_negatives: 1, or leave it out"
            )

    def completed(self, rows: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], list[str]]:
        if not self.hard_negatives:
            return rows, []
        good = [row for row in rows if _whole(row)]
        if self.corpus is not None:
            corpus = corpus_of(self.corpus)
        else:
            corpus = {d: d for row in good for _, p, ns in [_texts(row)] for d in (p, *ns)}
        made, notes = with_negatives(good, _texts, corpus, self.hard_negatives, self.candidates)
        done = iter(made)
        return [next(done) if _whole(row) else row for row in rows], notes

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], indices: Sequence[int], tokenizer: Any
    ) -> list[Encoded | RowError]:
        told: list[Any] = []
        for row in rows:
            try:
                told.append(_texts(row))
            except RowError as error:
                told.append(error)
        good = [t for t in told if not isinstance(t, RowError)]
        keep_end = self.truncation_mode == "keep_end"
        short = self.max_length if self.query_length is None else self.query_length
        queries = iter(whole([q for q, _, _ in good], tokenizer, short, keep_end) if not self.paired else [])
        joined: Any = [self._document(q, d, tokenizer) for q, p, ns in good for d in (p, *ns)]
        documents = iter(whole(joined, tokenizer, self.max_length, keep_end))
        results: list[Encoded | RowError] = []
        for index, found in zip(indices, told):
            if isinstance(found, RowError):
                results.append(found)
                continue
            query, positive, negatives = found
            asked = ([], None, 0) if self.paired else next(queries)
            parts = [next(documents) for _ in (positive, *negatives)]
            keys = [_identity(t) for t in (positive, *negatives)]
            results.append(self._example(index, asked, parts, keys, _identity(query)))
        return results

    def _document(self, query: str, document: str, tokenizer: Any) -> Any:
        if not self.paired:
            return document
        return (query, document) if separates(tokenizer) else query + _BETWEEN + document

    def _example(self, index: int, query: Any, documents: Any, keys: list[int], query_key: int) -> Encoded | RowError:
        ids = [d[0] for d in documents]
        if not all(ids) or not (query[0] or self.paired):
            return RowError("the query or a document has no tokens")
        limit = self.query_length if self.query_length is not None else self.max_length
        cut = limit is not None and query[2] > limit
        try:
            cut = any(not self.fits(d[2]) for d in documents) or cut
        except RowError as error:
            return error
        if cut and self.overlong == "reject":
            return RowError(f"a query of {query[2]} tokens, more than {limit} (overlong: reject)")
        types = [d[1] for d in documents] if documents[0][1] is not None else None
        return Encoded(SearchExample(index, query[0], ids, keys, query_key, types), {"cut"} if cut else set())


def _texts(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Query, positive, negatives. Raises RowError."""
    query = row["query"] if row.get("query") is not None else row.get("anchor")
    positive, negatives = row.get("positive"), row.get("negatives", row.get("negative"))
    for name, value in (("query", query), ("positive", positive)):
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"no '{name}'" if value is None else f"'{name}' is not a text with words")
    several = [negatives] if isinstance(negatives, str) else list(negatives or [])
    if not all(isinstance(n, str) and n.strip() for n in several):
        raise RowError("a negative is not a text with words")
    if positive in several:
        raise RowError("a negative is the positive itself")
    return query, positive, several  # type: ignore[return-value]


def _whole(row: dict[str, Any]) -> bool:
    try:
        _texts(row)
    except RowError:
        return False
    return True


def _identity(text: str) -> int:
    """A number that stands for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
