"""ir-measures (over pytrec_eval, trec_eval's own code) on the same rankings, with grades; and exhaustive distances by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.checks._compare import require
from luthier.checks.evaluation import worlds
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of

WORDS = ["maple", "river", "stone", "cloud", "amber", "violet", "cedar"]


def _text(rng: np.random.Generator) -> str:
    return f"{' '.join(rng.choice(WORDS, 4))} {int(rng.integers(1000))}"


def _set(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Documents, queries, and grades of 0 to 3 for some documents of each query; one query was never judged."""
    rng = np.random.default_rng(seed)
    corpus = [{"_id": f"d{i}", "text": _text(rng)} for i in range(40)]
    queries = [{"_id": f"q{i}", "text": _text(rng)} for i in range(25)]
    qrels = {}
    for query in queries[1:]:
        judged = rng.choice(40, 8, replace=False)
        grades = rng.integers(0, 4, 8)
        grades[0] = max(1, grades[0])
        qrels[query["_id"]] = {f"d{d}": int(g) for d, g in zip(judged, grades)}
    return corpus, queries, qrels


def oracle_ir_measures() -> None:
    import ir_measures
    from ir_measures import RR, R, nDCG

    subject = worlds(method(__name__))[0].real(4096)
    corpus, queries, qrels = _set(4)
    here, there = (subject.embeddings([r["text"] for r in rows]).astype(float) for rows in (queries, corpus))
    for how in ("dot", "cosine"):
        if how == "cosine":
            here, there = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (here, there))
        scores = here @ there.T
        run = {q["_id"]: {d["_id"]: float(s) for d, s in zip(corpus, row)} for q, row in zip(queries, scores)}
        for k, m in ((10, 20), (3, 5), (40, 40)):
            scorer = method(__name__, corpus=tuple(corpus), qrels=qrels, k=k, recall_at=m, similarity=how)
            answers = scorer.ask(subject, items_of(queries))
            require(len(answers) == len(qrels), "the query that was never judged is scored")
            measures = {"mrr": RR @ k, "ndcg": nDCG @ k, "recall": R @ m}
            found: dict[tuple[str, str], float] = {
                (str(row.measure), row.query_id): row.value
                for row in ir_measures.iter_calc(measures.values(), qrels, run)
            }
            for name, measure in measures.items():
                for query, value in zip(qrels, answers.stats[name], strict=True):
                    equal(float(value), found[str(measure), query], f"{measure} of {query}")
