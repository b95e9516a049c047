"""Real rows through the whole path: GSM8K, and film reviews without a header."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from luthier.data import overlap, prepare, preview_text, read

PLACE = os.environ.get("LUTHIER_DATA", "")
pytestmark = pytest.mark.skipif(
    not PLACE or not Path(PLACE, "gsm8k").is_dir(), reason="needs real data: set LUTHIER_DATA to its folder"
)
MAPPED = {"prompt": "question", "completion": "answer"}


def test_gsm8k_through_the_whole_path(chatml, tmp_path: Path) -> None:
    options = {"max_length": 600, "apply_chat_template": True}

    def run():
        return prepare(
            "${LUTHIER_DATA}/gsm8k/train.jsonl", tokenizer=chatml, columns=MAPPED, options=options, cache_dir=tmp_path
        )

    began = time.process_time()  # not the clock on the wall: the machine may be busy
    prepared = run()
    assert time.process_time() - began < 20  # about five seconds on a free core
    report = prepared.report
    assert report.rows_found == 7473 == report.examples + len(report.rejected)
    assert all("answer lies beyond" in r.reason for r in report.rejected)
    assert report.truncated > report.answers_cut > 0
    rows = read("${LUTHIER_DATA}/gsm8k/train.jsonl", limit=50).rows
    for row, example in zip(rows, prepared.examples):
        if len(example) < 600:
            trained = chatml.decode([i for i, on in zip(example.ids, example.counts) if on])
            assert trained == row["answer"] + "<|im_end|>"
    assert "[[Natalia sold" in preview_text(prepared, chatml, 1)
    assert run().report.cache["reused"]


def test_gsm8k_parts_do_not_overlap() -> None:
    train, test = (read("${LUTHIER_DATA}/gsm8k/" + f"{part}.jsonl", columns=MAPPED) for part in ("train", "test"))
    assert len(test) == 660
    assert overlap(train, test) == []


def test_reviews_by_numbered_columns(chatml) -> None:
    prepared = prepare("${LUTHIER_DATA}/sst2/train.tsv", tokenizer=chatml, columns={"text": 0, "label": 1})
    assert len(prepared) == 6920
    assert prepared.report.label_names == ["0", "1"]
    assert sum(prepared.report.label_counts.values()) == 6920
