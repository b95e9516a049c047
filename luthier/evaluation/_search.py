"""What scorers of search need: documents and judgements by id, how well a ranking does, and rankings by words or by a model.

MRR@k    1 / rank of the first relevant document, 0 where none is among the first k
Recall@m share of the relevant documents that are among the first m
NDCG@k   DCG / DCG of the best order,  DCG = sum_{i <= k} g_i / log2(i + 1),  g_i the grade of document i, 0 unjudged
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core.bm25 import Bm25, have_bm25
from luthier.core.embedding import Pooling, Similarity, similarity
from luthier.core.method import LuthierError, Refusal
from luthier.core.subject import Subject, plain_model, separates
from luthier.data._mining import corpus_of
from luthier.evaluation._family import Answers, Item, Scorer

__all__ = [
    "Answers", "Bm25", "Item", "LuthierError", "Pooling", "Refusal", "Scorer", "Similarity", "Subject", "by_embeddings",
    "by_pairs", "corpus_of", "dcg", "have_bm25", "judgements", "query_of", "relevant_to", "values_of",
]  # fmt: skip

Grades = dict[str, float]
"""Documents that were judged, by id; above 0 is relevant."""


def query_of(item: Item, scorer: str) -> str:
    text = item.prompt if item.prompt is not None else item.text
    if not isinstance(text, str):
        columns = ", ".join(sorted(item.row))
        raise LuthierError(f"{scorer}: row {item.id} has no query (columns: {columns}); map one with `columns`")
    return text


def relevant_to(item: Item, scorer: str) -> Grades:
    """What a row itself says: `relevant` as ids or {id: grade}, or the one document that is its answer."""
    told = item.row.get("relevant", item.accepted)
    grades = {str(d): float(g) for d, g in told.items()} if isinstance(told, Mapping) else {str(d): 1.0 for d in told}
    if not any(g > 0 for g in grades.values()):
        raise LuthierError(f"{scorer}: row {item.id} names no relevant document: give `qrels`, or a column `relevant`")
    return grades


def judgements(source: Any) -> dict[str, Grades]:
    """{query: {document: grade}}, of a mapping, of rows, or of a file.

    A file of text has a line a judgement: query, document, grade, or with TREC's unused second column, and maybe a
    heading. Rows have the columns query-id, corpus-id and score.
    """
    if isinstance(source, Mapping) and "path" not in source:
        return {str(q): {str(d): float(g) for d, g in told.items()} for q, told in source.items()}
    path = Path(source) if isinstance(source, str) else None
    if path is not None and path.is_file() and path.suffix not in (".jsonl", ".json", ".csv", ".parquet", ".arrow"):
        return _of_lines(path)
    from luthier.data import read

    rows = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else list(read(source).rows)
    out: dict[str, Grades] = {}
    for i, row in enumerate(rows):
        try:
            query, document, grade = row["query-id"], row["corpus-id"], float(row.get("score", 1))
        except (KeyError, ValueError):
            raise LuthierError(f"qrels: row {i} needs query-id, corpus-id and a number score; it has {row}") from None
        out.setdefault(str(query), {})[str(document)] = grade
    return out


def _of_lines(path: Path) -> dict[str, Grades]:
    out: dict[str, Grades] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if not parts or (number == 1 and not _is_number(parts[-1])):
            continue
        if len(parts) not in (3, 4) or not _is_number(parts[-1]):
            raise LuthierError(f"{path}:{number}: a judgement is query, document, grade; this line is '{line[:60]}'")
        out.setdefault(parts[0], {})[parts[-2]] = float(parts[-1])
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------- values


def dcg(grades: Sequence[float]) -> float:
    return sum(g / math.log2(i + 2) for i, g in enumerate(grades))


def values_of(ranking: Sequence[str], grades: Grades, k: int, recall_at: int) -> dict[str, float]:
    """mrr, ndcg and recall of one query."""
    gains = [max(0.0, grades.get(d, 0.0)) for d in ranking]
    best = sorted((g for g in grades.values() if g > 0), reverse=True)
    first = next((i for i, g in enumerate(gains[:k]) if g > 0), None)
    return {
        "mrr": 0.0 if first is None else 1 / (first + 1),
        "ndcg": dcg(gains[:k]) / dcg(best[:k]),
        "recall": sum(g > 0 for g in gains[:recall_at]) / len(best),
    }


# ----------------------------------------------------------------------------------------------------- rankings


def by_embeddings(
    subject: Subject, queries: Sequence[str], documents: Sequence[str], pooling: Pooling, how: Similarity,
    max_length: int | None, query_length: int | None, depth: int,
) -> list[list[int]]:  # fmt: skip
    """The `depth` nearest documents of each query, nearest first; of equal ones the first."""
    there = torch.from_numpy(subject.embeddings(documents, pooling=pooling, max_length=max_length))
    here = torch.from_numpy(subject.embeddings(queries, pooling=pooling, max_length=query_length or max_length))
    out = []
    for rows in here.split(256):
        scores = similarity(rows.double(), there.double(), how).numpy()
        out += np.argsort(-scores, axis=1, kind="stable")[:, :depth].tolist()
    return out


def by_pairs(
    subject: Subject, queries: Sequence[str], documents: Sequence[str], candidates: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The candidates of each query in the order of a head that reads query and document together. Raises Refusal."""
    outputs = getattr(plain_model(subject.model).config, "num_labels", None)
    if subject.task != "classification" or outputs != 1:
        raise Refusal(
            f"re-ranking needs a head with one output; this subject is a {subject.task} model"
            + (f" with {outputs}" if subject.task == "classification" else "")
        )
    apart = not hasattr(subject, "tokenizer") or separates(subject.tokenizer)
    pairs = [
        (q, documents[d]) if apart else f"{q}\n{documents[d]}" for q, found in zip(queries, candidates) for d in found
    ]
    scores = iter(subject.class_probabilities(pairs)[:, 0].tolist())
    out = []
    for found in candidates:
        mine = [next(scores) for _ in found]
        out.append([found[i] for i in np.argsort([-s for s in mine], kind="stable").tolist()])
    return out
