"""Retrieval rows: what is read, what is refused, and that no mined negative answers its query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core import bm25
from luthier.core.bm25 import Bm25, words
from luthier.core.method import LuthierError, RowError
from luthier.data import overlap, prepare, preview_text, read, split
from luthier.data.retrieval import Retrieval

ROW = {"query": "red boat", "positive": "a boat that is red"}


def rows_file(tmp_path: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.mark.parametrize(
    ("negatives", "n"),
    [
        ({}, 0),
        ({"negative": "x y"}, 1),
        ({"negative": ["x", "y"]}, 2),
        ({"negatives": ["x"]}, 1),
        ({"negative": None}, 0),
    ],
)
def test_negatives_may_be_a_text_or_a_list(make, negatives: dict, n: int) -> None:
    example = Retrieval().encode({**ROW, **negatives}, 3, make())
    assert example.row == 3
    assert len(example.documents) == len(example.keys) == 1 + n
    assert make().decode(example.documents[0]) == ROW["positive"]
    anchor = {"anchor": ROW["query"], "positive": ROW["positive"], **negatives}
    assert Retrieval().encode(anchor, 3, make()) == example


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"positive": "a"}, "no 'query'"), ({"query": "a"}, "no 'positive'"), ({"query": " ", "positive": "a"}, "with words"),
        ({**ROW, "negative": ["x", ROW["positive"]]}, "the positive itself"), ({**ROW, "negatives": [3]}, "not a text"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(make, row: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        Retrieval().encode(row, 0, make())


def test_one_text_is_one_document_wherever_it_stands(make) -> None:
    a, b = (
        Retrieval().encode(r, 0, make()) for r in (ROW, {"query": "q", "positive": "z", "negative": ROW["positive"]})
    )
    assert a.keys[0] == b.keys[1] != b.keys[0]
    assert a.query_key == Retrieval().encode({**ROW, "positive": "other"}, 0, make()).query_key != b.query_key


def test_lengths_of_queries_and_documents(make) -> None:
    row = {"query": "one two three four five", "positive": "a b c d e f g", "negative": "a b"}
    method = Retrieval(max_length=4, query_length=2)
    (told,) = method.encode_rows([row], [0], make())
    assert len(told.example.query) == 2
    assert [len(d) for d in told.example.documents] == [4, len(make()("a b")["input_ids"])]
    assert told.marks == {"cut"}
    with pytest.raises(RowError, match="reject"):
        Retrieval(max_length=50, query_length=2, overlong="reject").encode(row, 0, make())


def test_pairs_are_one_sequence_for_every_document() -> None:
    from luthier.checks.data import vocabulary

    row = {**ROW, "negatives": ["window", "garden ladder"]}
    encoder, causal = vocabulary("encoder"), vocabulary("causal")
    example = Retrieval(paired=True).encode(row, 0, encoder)
    assert example.query == []
    for ids, document in zip(example.documents, [ROW["positive"], *row["negatives"]]):
        assert ids == encoder(ROW["query"], document)["input_ids"]
    joined = Retrieval(paired=True).encode(row, 0, causal)
    assert joined.documents[1] == causal(f"{ROW['query']}\nwindow")["input_ids"]


def test_the_cache_gives_the_same_examples(tmp_path: Path) -> None:
    from luthier.checks.data import vocabulary

    rows = [{"query": f"q {i}", "positive": f"p {i}", "negatives": [f"n {k}" for k in range(i % 3)]} for i in range(5)]
    source = rows_file(tmp_path, rows)
    for paired in (False, True):
        made = [
            prepare(source, tokenizer=vocabulary("encoder"), options={"paired": paired}, cache_dir=tmp_path / "cache")
            for _ in range(2)
        ]
        assert [m.report.cache["reused"] for m in made] == [False, True]
        assert made[0].examples == made[1].examples
        assert made[0].examples[0].keys[0] > 2**31 or made[0].examples[1].keys[0] > 2**31


def test_a_preview_names_the_documents(tmp_path: Path, make) -> None:
    text = preview_text(prepare(rows_file(tmp_path, [{**ROW, "negative": "x y"}]), tokenizer=make()), make())
    assert "query: red boat" in text
    assert "positive: a boat that is red" in text
    assert "negative 1: x y" in text


# ------------------------------------------------------------------------------------------------------- mining

CORPUS = [{"_id": f"d{i}", "text": f"{c} {t} number {i}"} for i, (c, t) in enumerate(
    (c, t) for c in ("red", "blue", "green", "black") for t in ("boat", "house", "tree", "stone", "river")
)]  # fmt: skip


def asked(relevant: bool) -> list[dict[str, Any]]:
    """Two answers a query, a row each; `relevant` names a third."""
    rows = []
    for c in ("red", "blue", "green", "black"):
        ids = [i for i, d in enumerate(CORPUS) if d["text"].startswith(c)][:3]
        for i in ids[:2]:
            row: dict[str, Any] = {"query": f"{c} boat house", "positive": CORPUS[i]["text"]}
            rows.append({**row, "relevant": [CORPUS[k]["_id"] for k in ids]} if relevant else row)
    return rows


@pytest.mark.parametrize("wanted", [1, 3])
def test_no_mined_negative_answers_its_query(tmp_path: Path, make, wanted: int) -> None:
    corpus = rows_file(tmp_path, CORPUS, "corpus.jsonl")
    rows = asked(relevant=True)
    answers = {r["query"]: {d["text"] for d in CORPUS if d["_id"] in r["relevant"]} for r in rows}
    options = {"hard_negatives": wanted, "candidates": 8, "corpus": corpus}
    made = prepare(rows_file(tmp_path, rows), tokenizer=make(), options=options)
    index = Bm25([d["text"] for d in CORPUS], "test")
    for example, row in zip(made.examples, rows, strict=True):
        drawn = [make().decode(d) for d in example.documents[1:]]
        top = {CORPUS[i]["text"] for i in index.top(row["query"], 8)}
        assert len(set(drawn)) == wanted
        assert set(drawn) <= top - answers[row["query"]]
        assert top & answers[row["query"]], "what answers the query is among the candidates: the test can fail"
    again = prepare(rows_file(tmp_path, rows), tokenizer=make(), options=options)
    assert again.report.sha256 == made.report.sha256
    assert any("by BM25" in note for note in made.report.notes)


def test_positives_of_other_rows_with_the_query_are_known(tmp_path: Path, make) -> None:
    rows = asked(relevant=False)
    made = prepare(rows_file(tmp_path, rows), tokenizer=make(), options={"hard_negatives": 6, "candidates": 6})
    assert any("fewer than 6 hard negatives" in note for note in made.report.notes)  # six candidates less two answers
    for example, row in zip(made.examples, rows, strict=True):
        right = {r["positive"] for r in rows if r["query"] == row["query"]}
        drawn = {make().decode(d) for d in example.documents[1:]}
        assert drawn
        assert not drawn & right


def test_own_negatives_are_kept_and_bad_rows_are_reported(tmp_path: Path, make) -> None:
    rows = [{**r, "negative": "mine"} for r in asked(relevant=False)] + [{"query": "no positive", "positive": None}]
    made = prepare(rows_file(tmp_path, rows), tokenizer=make(), options={"hard_negatives": 2})
    assert all(len(e.documents) == 3 and make().decode(e.documents[1]) == "mine" for e in made.examples)
    assert [str(r.reason) for r in made.report.rejected] == ["no 'positive'"]


def test_errors_of_mining(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rows_file(tmp_path, asked(relevant=False))
    with pytest.raises(LuthierError, match=r"say hard_negatives: 1"):
        prepare(source, tokenizer=make(), options={"corpus": source})
    twice = rows_file(tmp_path, [CORPUS[0], CORPUS[0]], "twice.jsonl")
    with pytest.raises(LuthierError, match=r"twice.jsonl:2: document 'd0' is in the corpus twice"):
        prepare(source, tokenizer=make(), options={"hard_negatives": 1, "corpus": twice})
    with pytest.raises(LuthierError, match=r"rows.jsonl:1: a document of a corpus needs `text`"):
        prepare(source, tokenizer=make(), options={"hard_negatives": 1, "corpus": source})
    monkeypatch.setattr(bm25, "have_bm25", lambda: False)
    with pytest.raises(LuthierError, match=r"data.hard_negatives needs the package bm25s: pip install"):
        prepare(source, tokenizer=make(), options={"hard_negatives": 1})


def test_a_query_is_on_one_side_of_a_split(tmp_path: Path) -> None:
    table = read(rows_file(tmp_path, asked(relevant=False)))
    train, held = split(table, 2, seed=1)
    assert not {r["query"] for r in train.rows} & {r["query"] for r in held.rows}
    with pytest.warns(UserWarning, match="LEAK"):
        overlap(table.take([0, 2]), table.take([1, 3]))


def test_bm25_is_its_formula() -> None:
    """Against a float64 loop over words; a word of the query twice counts twice, an unknown one not at all."""
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(list("abcdefgh"), rng.integers(2, 9))) for _ in range(12)] + ["A, a. Zebra-7"]
    split_up, k1, b = [words(d) for d in documents], 1.5, 0.75
    mean = np.mean([len(d) for d in split_up])
    for query in ("a b b nowhere", "zebra H", "7 c", "nothing known"):
        wanted = []
        for d in split_up:
            score = 0.0
            for t in words(query):
                n = sum(t in other for other in split_up)
                f = d.count(t)
                idf = np.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                score += idf * f / (f + k1 * (1 - b + b * len(d) / mean))
            wanted.append(score)
        np.testing.assert_allclose(Bm25(documents, "test", k1, b).scores(query), wanted, rtol=1e-5, atol=1e-6)
    assert Bm25(["", "!"], "test").top("a", 2) == [0, 1]
