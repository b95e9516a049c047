"""Retrieval: whether what answers a query is found among all documents, by vectors, by a re-ranking head, or by words.

    mrr     MRR@k    1 / rank of the first relevant document
    ndcg    NDCG@k   by grades, with gain g / log2(rank + 1)                      evaluation/_search.py
    recall  Recall@recall_at    share of the relevant documents that are found

    corpus      documents: rows with `text`, `id` or `_id`, maybe `title`; all of them are ranked, whatever was trained on
    qrels       judgements (query, document, grade above 0: relevant); queries without any are left out. None: a row of `data`
                names its own documents by `relevant`, ids or {id: grade}
    k, recall_at
    by          "embedding": one vector a text;  "rerank": a head with one output orders the `candidates` best by BM25;
                "bm25": words alone, whatever the model;  "auto": rerank for a class head, else embedding
    pooling, similarity, max_length, query_length   of the vectors: as in training
`data` are the queries (rows with `query` or `text`, and `id` or `_id`). One value a query, so base and tuned are paired. Where
bm25s is installed, BM25's value on the same queries is told as a line to beat.
Cost:       one forward a document and query; for re-ranking one a candidate.
Paper:      Voorhees, 1999 (reciprocal rank); Järvelin and Kekäläinen, 2002, "Cumulated gain-based evaluation of IR techniques".
Departures: the gain is linear, as in trec_eval. Equal scores keep the order of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from luthier.evaluation._search import (
    Answers,
    Bm25,
    Item,
    LuthierError,
    Pooling,
    Scorer,
    Similarity,
    Subject,
    by_embeddings,
    by_pairs,
    corpus_of,
    have_bm25,
    judgements,
    query_of,
    relevant_to,
    values_of,
)


@dataclass(frozen=True)
class Retrieval(Scorer):
    paper: ClassVar[str] = "Järvelin and Kekäläinen, 2002"
    cards: ClassVar[tuple[int, ...]] = (40,)
    metrics: ClassVar[dict[str, bool]] = {"mrr": True, "ndcg": True, "recall": True}
    sample: ClassVar[str] = "mrr"
    corpus: Any = None
    qrels: Any = None
    k: int = 10
    recall_at: int = 100
    by: Literal["auto", "embedding", "rerank", "bm25"] = "auto"
    candidates: int = 100
    pooling: Pooling = "mean"
    similarity: Similarity = "dot"
    max_length: int | None = None
    query_length: int | None = None

    def __post_init__(self) -> None:
        if min(self.k, self.recall_at, self.candidates) < 1:
            raise LuthierError("retrieval needs k, recall_at and candidates of at least 1")

    @classmethod
    def example(cls) -> Self:
        return cls(corpus=tuple({"id": word, "text": word} for word in "012"), recall_at=1)

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        if self.corpus is None:
            raise LuthierError("retrieval needs `corpus`: the documents that are searched")
        corpus = corpus_of(self.corpus)
        items, grades = self._judged(items)
        queries = [query_of(i, self.name) for i in items]
        ids, texts = list(corpus), list(corpus.values())
        rankings = [[ids[d] for d in found] for found in self._rankings(subject, queries, texts)]
        values = [values_of(r, g, self.k, self.recall_at) for r, g in zip(rankings, grades, strict=True)]
        best = [corpus[r[0]][:200] for r in rankings]
        found = self.answers(items, {m: [v[m] for v in values] for m in self.metrics}, best)
        found.references = [next((corpus[d][:200] for d in g if d in corpus), "") for g in grades]
        if self.by != "bm25" and have_bm25():
            found.floors["BM25"] = self._by_words(queries, ids, texts, grades)
        return found

    def _judged(self, items: Sequence[Item]) -> tuple[list[Item], list[dict[str, float]]]:
        """Queries that something is known to answer, and their judgements."""
        if self.qrels is None:
            return list(items), [relevant_to(i, self.name) for i in items]
        known = judgements(self.qrels)
        told = [(i, known.get(str(i.row.get("_id", i.id)), {})) for i in items]
        kept = [(i, g) for i, g in told if any(v > 0 for v in g.values())]
        if not kept:
            first = items[0].row.get("_id", items[0].id)
            raise LuthierError(f"retrieval: qrels judge none of the {len(items)} queries (the first is '{first}')")
        return [i for i, _ in kept], [g for _, g in kept]

    def _rankings(self, subject: Subject, queries: list[str], documents: list[str]) -> list[list[int]]:
        depth = max(self.k, self.recall_at)
        by = self.by if self.by != "auto" else "rerank" if subject.task == "classification" else "embedding"
        if by == "embedding":
            lengths = self.max_length, self.query_length
            return by_embeddings(subject, queries, documents, self.pooling, self.similarity, *lengths, depth)
        index = Bm25(documents, f"retrieval by {by}")
        if by == "bm25":
            return [index.top(q, depth) for q in queries]
        return by_pairs(subject, queries, documents, [index.top(q, self.candidates) for q in queries])

    def _by_words(self, queries: list[str], ids: list[str], documents: list[str], grades: Any) -> float:
        """MRR@k of BM25."""
        index = Bm25(documents, "retrieval")
        found = [[ids[d] for d in index.top(q, self.k)] for q in queries]
        return float(np.mean([values_of(r, g, self.k, self.k)["mrr"] for r, g in zip(found, grades, strict=True)]))
