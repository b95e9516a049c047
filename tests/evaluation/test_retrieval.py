"""The retrieval scorer: files, whole corpora, re-ranking, and rankings whose values can be written down."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.core.method import LuthierError, Refusal
from luthier.evaluation import measure, pair
from luthier.evaluation._family import items_of
from luthier.evaluation._search import judgements, values_of
from luthier.evaluation.retrieval import Retrieval

CORPUS = tuple({"_id": f"d{i}", "text": t} for i, t in enumerate(
    ["red boat", "red boat at sea", "blue boat", "red house", "green tree", "a stone", "black river", "red boat boat"]
))  # fmt: skip
QUERIES = [{"_id": "q0", "query": "red boat"}, {"_id": "q1", "query": "tree"}, {"_id": "q2", "query": "nobody judged"}]
QRELS = {"q0": {"d1": 2, "d7": 1, "d4": 0}, "q1": {"d4": 1}}


class Known:
    """A subject whose vectors, or scores of pairs, are given."""

    def __init__(self, vectors: dict[str, Any] | None = None, scores: dict[str, float] | None = None):
        self.task, self.name, self.vectors, self.scores_of = "embedding", "known", vectors or {}, scores or {}
        self.asked: list[Any] = []
        self.model = SimpleNamespace(config=SimpleNamespace(num_labels=1))
        if scores is not None:
            self.task = "classification"

    def embeddings(self, texts: Any, pooling: str = "mean", max_length: int | None = None) -> np.ndarray:
        self.asked.append((list(texts), pooling, max_length))
        return np.array([self.vectors[t] for t in texts], dtype=np.float32)

    def class_probabilities(self, pairs: Any) -> np.ndarray:
        self.asked += pairs
        return np.array([[self.scores_of[d]] for _, d in pairs])


def vectors(order: dict[str, list[str]]) -> dict[str, Any]:
    """Vectors under which each query's documents have that order: dimension j belongs to query j."""
    queries = list(order)
    out = {q: np.eye(len(queries))[j] for j, q in enumerate(queries)}
    for d in (row["text"] for row in CORPUS):
        out[d] = np.array([-float(order[q].index(d)) for q in queries])
    return out


def orders() -> dict[str, list[str]]:
    texts = [row["text"] for row in CORPUS]
    return {"red boat?": texts, "tree?": texts[::-1]}


ASKED = [{"_id": "q0", "query": "red boat?"}, {"_id": "q1", "query": "tree?"}, {"_id": "q2", "query": "nobody judged"}]


def test_values_of_a_ranking_by_hand() -> None:
    found = values_of(["a", "b", "c", "d"], {"b": 3, "d": 1, "x": 2, "c": 0}, k=3, recall_at=4)
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert found == {"mrr": 0.5, "ndcg": pytest.approx(3 / math.log2(3) / best), "recall": pytest.approx(2 / 3)}
    assert values_of(["a", "c"], {"b": 1}, 2, 2) == {"mrr": 0.0, "ndcg": 0.0, "recall": 0.0}


def test_the_whole_corpus_is_ranked_and_queries_that_nobody_judged_are_left_out() -> None:
    subject = Known(vectors(orders()))
    scorer = Retrieval(corpus=CORPUS, qrels=QRELS, k=2, recall_at=3, pooling="cls", max_length=9, query_length=4)
    found = scorer.ask(subject, items_of(ASKED))  # type: ignore[arg-type]
    assert [a[0] for a in subject.asked] == [[r["text"] for r in CORPUS], ["red boat?", "tree?"]]
    assert [a[1:] for a in subject.asked] == [("cls", 9), ("cls", 4)]
    assert found.stats["mrr"].tolist() == [0.5, 0.0]  # d1 is second; d4 is fourth from the end
    assert found.stats["recall"].tolist() == [0.5, 0.0]
    assert found.outputs == ["red boat", "red boat boat"]
    assert found.references == ["red boat at sea", "green tree"]


def test_rows_may_name_their_own_documents() -> None:
    rows = [{**ASKED[0], "relevant": {"d1": 2, "d7": 1}}, {**ASKED[1], "relevant": ["d7"]}]
    found = Retrieval(corpus=CORPUS, k=2).ask(Known(vectors(orders())), items_of(rows))  # type: ignore[arg-type]
    assert found.stats["mrr"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "q0 0 d1 2\nq0 0 d7 1\nq0 0 d4 0\nq1 0 d4 1\n",
        "query-id\tcorpus-id\tscore\nq0\td1\t2\nq0\td7\t1\nq0\td4\t0\nq1\td4\t1\n",
    ],
)
def test_judgements_from_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(text)
    assert (
        judgements(str(path))
        == judgements(QRELS)
        == {q: {d: float(g) for d, g in gs.items()} for q, gs in QRELS.items()}
    )
    rows = [{"query-id": q, "corpus-id": d, "score": g} for q, gs in QRELS.items() for d, g in gs.items()]
    assert judgements(rows) == judgements(QRELS)
    path.write_text("q0 d1 2\nq0 d7\n")
    with pytest.raises(LuthierError, match=r"qrels.tsv:2: a judgement is query, document, grade"):
        judgements(str(path))


def test_a_head_orders_what_words_found() -> None:
    scores = {row["text"]: float(i) for i, row in enumerate(CORPUS)}
    subject = Known(scores=scores)
    scorer = Retrieval(corpus=CORPUS, qrels=QRELS, candidates=4, k=10)
    found = scorer.ask(subject, items_of(QUERIES))  # type: ignore[arg-type]
    about = [d for q, d in subject.asked if q == "red boat"]
    assert (
        sorted(about) == sorted(["red boat", "red boat at sea", "red boat boat", "blue boat"]) or "red house" in about
    )
    assert len(about) == 4
    assert found.outputs[0] == "red boat boat"  # the last of the corpus has the highest score
    assert found.stats["mrr"][0] == 1.0
    subject.model.config.num_labels = 3
    with pytest.raises(Refusal, match="a head with one output"):
        scorer.ask(subject, items_of(QUERIES))  # type: ignore[arg-type]


def test_words_alone_ask_no_model() -> None:
    found = Retrieval(corpus=CORPUS, qrels=QRELS, by="bm25").ask(Known(), items_of(QUERIES))  # type: ignore[arg-type]
    assert found.stats["mrr"].tolist() == [pytest.approx(1 / r) for r in (2, 1)] or found.stats["mrr"][1] == 1.0
    assert "BM25" not in found.floors
    other = Retrieval(corpus=CORPUS, qrels=QRELS).ask(
        Known({**vectors({q["query"]: [r["text"] for r in CORPUS] for q in QUERIES[:2]})}), items_of(QUERIES)
    )  # type: ignore[arg-type]
    assert other.floors["BM25"] == pytest.approx(found.stats["mrr"].mean())


def test_base_and_tuned_are_paired_query_by_query() -> None:
    task = {
        "name": "s", "scorer": "retrieval", "data": ASKED, "corpus": list(CORPUS), "qrels": QRELS, "k": 8, "recall_at": 2,
    }  # fmt: skip
    swapped = dict(zip(orders(), reversed(orders().values())))
    before, after = (measure(Known(vectors(o)), [task]) for o in (orders(), swapped))  # type: ignore[arg-type]
    told = pair(before, after)
    assert told["paired"]["s"]["mrr"]["n"] == 2
    # d1 is second, then seventh but d7 is first: 1/2 to 1; d4 is fourth, then fifth
    assert told["paired"]["s"]["mrr"]["difference"] == pytest.approx(((1 - 1 / 2) + (1 / 5 - 1 / 4)) / 2)


@pytest.mark.parametrize(
    ("options", "rows", "words"),
    [
        ({}, QUERIES, "needs `corpus`"), ({"corpus": CORPUS}, QUERIES, "row 0 names no relevant document"),
        ({"corpus": CORPUS, "qrels": {"other": {"d0": 1}}}, QUERIES, "judge none of the 3 queries"),
        ({"corpus": CORPUS, "qrels": QRELS}, [{"_id": "q0", "note": "x"}], "has no query"),
    ],
)  # fmt: skip
def test_errors(options: dict, rows: list, words: str) -> None:
    with pytest.raises(LuthierError, match=words) as error:
        Retrieval(**options).ask(Known(), items_of(rows))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
