"""Hard negatives: documents that BM25 ranks high for a query and that do not answer it.

    negatives(q) = a sample of top-k(q) without what answers q

What answers a query are the positives of every row with that query and the documents of the corpus that a row names in
`relevant`; the negatives that a row brings are kept. No mined document has the text of one of them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.core.bm25 import Bm25
from luthier.core.method import LuthierError

Row = dict[str, Any]
Texts = Callable[[Row], tuple[str, str, list[str]]]
"""Query, positive and negatives of a row."""


def with_negatives(
    rows: Sequence[Row], texts: Texts, corpus: Mapping[str, str], wanted: int, candidates: int
) -> tuple[list[Row], list[str]]:
    """Rows with `negatives` made up to `wanted`, and notes. Each draw depends on its row's texts alone."""
    told = [texts(row) for row in rows]
    answers: dict[str, set[str]] = defaultdict(set)
    for row, (query, positive, _) in zip(rows, told):
        answers[query] |= {positive, *(corpus[str(i)] for i in row.get("relevant") or () if str(i) in corpus)}
    documents = list(corpus.values())
    index = Bm25(documents, "data.hard_negatives")
    found: dict[str, list[str]] = {}
    for query, right in answers.items():
        best = (documents[i] for i in index.top(query, candidates))
        found[query] = [d for d in dict.fromkeys(best) if d not in right]
    out, short = [], 0
    for row, (query, positive, own) in zip(rows, told):
        pool = [d for d in found[query] if d not in own]
        missing = max(0, wanted - len(own))
        drawn = random.Random(f"{query}\n{positive}").sample(pool, min(missing, len(pool)))
        short += len(drawn) < missing
        out.append({**row, "negatives": [*own, *drawn]} if own or drawn else row)
    notes = [f"hard negatives from the {candidates} best of {len(corpus):,} documents by BM25"]
    return out, [*notes, f"{short} rows found fewer than {wanted} hard negatives"] if short else notes


def corpus_of(source: Any) -> dict[str, str]:
    """Documents by id (`_id` or `id`, else their number): `text`, with `title` before it where there is one."""
    from luthier.data._reading import RowTable, read

    given = isinstance(source, Sequence) and not isinstance(source, str) and all(isinstance(r, Mapping) for r in source)
    rows = given and not any("path" in r for r in source)
    table = RowTable(list(source), [f"corpus[{i}]" for i in range(len(source))]) if rows else read(source)
    out: dict[str, str] = {}
    for i, (row, origin) in enumerate(zip(table.rows, table.origins)):
        text, title = row.get("text", row.get("contents")), row.get("title")
        key = str(row.get("_id", row.get("id", i)))
        if not isinstance(text, str):
            raise LuthierError(f"{origin}: a document of a corpus needs `text`; this row has {', '.join(row)}")
        if key in out:
            raise LuthierError(f"{origin}: document '{key}' is in the corpus twice: give each its own id")
        out[key] = f"{title} {text}" if title else text
    return out
