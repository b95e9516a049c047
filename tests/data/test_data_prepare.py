"""From a source to examples and a report; the cache; what is shown."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHATML, GEMMA

from luthier.core.batch import TextExample
from luthier.core.method import LuthierError
from luthier.data import Prepared, prepare, preview, preview_text, read, split

TALK = [{"role": "user", "content": "Is\nit?"}, {"role": "assistant", "content": "Yes."}]
KINDS = {
    "chat": {"messages": TALK},
    "text": {"text": "Once upon a time."},
    "preference": {"prompt": "Q", "chosen": " good", "rejected": " bad one"},
    "unpaired": {"prompt": "Q", "completion": " a", "label": True},
    "ranked": {"prompt": "Q", "completions": [" a", " b c", " d"], "scores": [1, 0.5, 0]},
    "labelled": {"text": "good film", "label": "pos"},
    "parallel": {"source": "hello", "target": "salut"},
    "segments": {"segments": [{"text": "a b", "label": False}, {"text": " c", "label": True}]},
    "tokenised": {"input_ids": [50, 51, 52], "labels": [-100, 51, 52]},
}


def adds_up(prepared: Prepared) -> bool:
    r = prepared.report
    return r.rows_found == len(prepared.examples) + len(r.rejected) + r.rows_left_out and r.examples == len(
        prepared.examples
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_type_through_the_whole_path_and_the_cache(write, make, tmp_path: Path, name: str) -> None:
    tokenizer = make(CHATML)
    path = write("r.jsonl", [KINDS[name], {"nothing": 1}, KINDS[name]])
    first = prepare(path, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
    again = prepare(path, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
    assert first.report.type == name
    assert len(first) == 2
    assert first.report.rejected[0].origin == f"{path}:2"
    assert adds_up(first)
    assert adds_up(again)
    assert first.report.cache["reused"] is False
    assert again.report.cache["reused"] is True
    assert again.examples == first.examples
    assert again.lengths == first.lengths == [len(e) for e in first.examples]
    one, two = first.report.as_dict(), again.report.as_dict()
    for report in (one, two):
        report.pop("seconds")
        report.pop("cache")
        json.dumps(report)
    assert one == two
    assert preview_text(first, tokenizer, 1).startswith(f"--- example 0, {path}:1, ")


def test_the_key_holds_everything_that_matters(write, make, tmp_path: Path) -> None:
    path = write("r.jsonl", [KINDS["chat"]])
    other = write("o.jsonl", [{"messages": [TALK[0], TALK[1] | {"content": "No."}]}])
    base = {"tokenizer": make(CHATML), "cache_dir": tmp_path / "c"}

    def key(source=path, **change) -> str:
        return prepare(source, **(base | change)).report.cache["key"]

    keys = [
        key(),
        key(other),
        key(tokenizer=make(GEMMA)),
        key(tokenizer=make(CHATML, bos=True)),
        key(options={"max_length": 99}),
        key(options={"train_on_eos": "none"}),
        key(options={"chat_template_path": "plain"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_a_damaged_cache_is_built_again(write, chatml, tmp_path: Path) -> None:
    path = write("r.jsonl", [KINDS["chat"]] * 3)
    first = prepare(path, tokenizer=chatml, cache_dir=tmp_path / "c")
    file = Path(first.report.cache["path"])
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for damage in (good[: len(good) // 2], b"", bytes(flipped), good[:50]):
        file.write_bytes(damage)
        again = prepare(path, tokenizer=chatml, cache_dir=tmp_path / "c")
        assert again.report.cache["reused"] is False
        assert again.examples == first.examples
        assert file.read_bytes() == good


def test_an_interrupted_write_leaves_nothing(write, chatml, tmp_path: Path, monkeypatch) -> None:
    import safetensors.numpy

    def half(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", half)
        with pytest.raises(OSError, match="disk full"):
            prepare(write("r.jsonl", [KINDS["chat"]]), tokenizer=chatml, cache_dir=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_options_are_checked(write, chatml) -> None:
    path = write("r.jsonl", [KINDS["chat"]])
    for options, message in [
        ({"max_lenght": 5}, "unknown option of chat 'max_lenght'; did you mean 'max_length'"),
        ({"label_names": ["a"]}, r"an option of labelled"),
        ({"train_on_eos": "trun"}, "train_on_eos: .*'trun'"),
        ({"max_length": 0}, "at least 1"),
        ({"truncation_mode": "middle"}, "truncation_mode"),
    ]:
        with pytest.raises(LuthierError, match=message) as error:
            prepare(path, tokenizer=chatml, options=options)
        assert "\n" not in str(error.value)
    with pytest.raises(LuthierError, match="did you mean 'chat'"):
        prepare(path, tokenizer=chatml, type="chatt")
    with pytest.raises(LuthierError, match=r"type text needs the column text; .* has messages"):
        prepare(path, tokenizer=chatml, type="text")
    with pytest.raises(LuthierError, match="image, audio or video rows"):
        prepare(path, tokenizer=chatml, type="image, audio or video")


def test_mapped_columns_settle_the_type(write, chatml) -> None:
    path = write("r.jsonl", [{"question": "q", "answer": "a", "text": "other"}])
    prepared = prepare(path, tokenizer=chatml, columns={"prompt": "question", "completion": "answer"})
    assert prepared.report.type == "chat"
    assert "as mapped" in prepared.report.why


def test_a_template_of_the_prompt_alone_leaves_answers_where_they_are(write, chatml) -> None:
    told = {"template": {"prompt": "{{ prompt }}\n"}}
    answered = write("r.jsonl", [{"question": "q", "answer": "a"}])
    columns = {"prompt": "question", "completion": "answer"}
    assert prepare(answered, tokenizer=chatml, columns=columns, **told).report.type == "chat"
    assert (
        prepare(write("p.jsonl", [{"prompt": "q", "answer": "a"}]), tokenizer=chatml, **told).report.type == "prompts"
    )
    completed = write("c.jsonl", [{"prompt": "q", "completion": "a"}])
    assert prepare(completed, tokenizer=chatml, **told).report.type == "chat"


def test_joined_sources_of_one_type_and_of_two(write, chatml) -> None:
    one = write("a.jsonl", [{"instruction": "q", "output": "a"}])
    two = write("b.jsonl", [{"prompt": "q", "completion": "a"}])
    other = write("c.jsonl", [{"text": "x"}])
    assert prepare([one, two], tokenizer=chatml).report.type == "chat"
    with pytest.raises(LuthierError, match="fit more than one row type"):
        prepare([one, other], tokenizer=chatml)


def test_nothing_usable_is_an_error_that_says_why(write, chatml) -> None:
    with pytest.raises(
        LuthierError, match=r"no row .* can be used as chat; 2 rejected, the first: .*:1: no message to train"
    ):
        prepare(write("r.jsonl", [{"messages": TALK[:1]}] * 2), tokenizer=chatml)
    with pytest.raises(LuthierError, match=r"no row to use in .*; 1 rejected, the first: .*:1: not JSON"):
        prepare(write("s.jsonl", "{"), tokenizer=chatml)
    with pytest.raises(LuthierError, match="strict: true"):
        prepare(write("t.jsonl", [KINDS["chat"], {"messages": []}]), tokenizer=chatml, strict=True)


def test_evaluation_rows_take_the_settled_type(write, chatml) -> None:
    train = prepare(write("t.jsonl", [{"text": "x", "label": v} for v in ("c", "a", "b")]), tokenizer=chatml)
    held = prepare(write("e.jsonl", [{"text": "y", "label": "c"}]), tokenizer=chatml, type=train.source)
    assert train.report.label_names == held.report.label_names == ["a", "b", "c"]
    assert held.examples[0].label == 2
    short = prepare(
        write("l.jsonl", [{"text": "y " * 9, "label": "c"}]),
        tokenizer=chatml,
        type=train.source,
        options={"max_length": 4},
    )
    assert short.lengths == [4]
    assert short.report.label_names == ["a", "b", "c"]
    assert train.report.label_counts == {"a": 1, "b": 1, "c": 1}


def test_a_split_table_goes_on(write, chatml) -> None:
    table = read(write("r.jsonl", [{"text": f"row {i}"} for i in range(20)] + [7]))
    train, held = split(table, 5)
    parts = [prepare(t, tokenizer=chatml) for t in (train, held)]
    assert [len(p) for p in parts] == [15, 5]
    assert all(map(adds_up, parts))
    assert sum(p.report.rows_found for p in parts) == 21


def test_limits_and_samples_add_up(write, chatml) -> None:
    path = write("r.jsonl", [{"text": f"row {i}"} for i in range(20)] + [7])
    for prepared in (
        prepare(path, tokenizer=chatml, limit=5),
        prepare(f"{path}#8", tokenizer=chatml, seed=2),
        prepare([path, f"{path}#3"], tokenizer=chatml),
    ):
        assert adds_up(prepared)


def test_report_counts_what_was_cut(write, make) -> None:
    tokenizer = make()
    rows = [{"prompt": "a b c ", "completion": "d " * n} for n in (1, 2, 40)]
    prepared = prepare(write("r.jsonl", rows), tokenizer=tokenizer, options={"max_length": 12})
    r = prepared.report
    assert (r.truncated, r.answers_cut) == (1, 1)
    assert max(prepared.lengths) == 12
    assert sum(n for _, _, n in r.histogram) == 3
    assert r.tokens == sum(prepared.lengths)
    assert r.trained_tokens == sum(sum(e.counts) for e in prepared.examples if isinstance(e, TextExample))
    strict = prepare(write("s.jsonl", rows), tokenizer=tokenizer, options={"max_length": 12, "overlong": "reject"})
    assert len(strict) == 2
    assert "more than max_length 12" in strict.report.rejected[0].reason
    assert adds_up(strict)


def test_same_rows_other_file_same_data(write, chatml) -> None:
    one = prepare(write("a.jsonl", [KINDS["chat"]]), tokenizer=chatml).report
    two = prepare(write("b.json", [KINDS["chat"]]), tokenizer=chatml).report
    assert (one.sha256, one.rows_sha256) == (two.sha256, two.rows_sha256)


def test_preview_in_plain_text(write, chatml) -> None:
    path = write("r.jsonl", [KINDS["chat"]])
    text = preview_text(prepare(path, tokenizer=chatml), chatml)
    assert text.split("\n--- report")[0] == (
        f"--- example 0, {path}:1, 19 tokens, 5 trained\n"
        "<|im_start|>user\\n\nIs\\n\nit?<|im_end|>\\n\n<|im_start|>assistant\\n\n[[Yes.<|im_end|>]]\\n\n"
    )
    report = text.split("--- report\n")[1].splitlines()
    assert report[0] == "type: chat (columns messages)"
    assert report[1] == "rows: 1 found, 1 examples, 0 rejected"
    assert report[2] == "tokens: 19, 5 trained"


def test_preview_of_other_types(write, chatml) -> None:
    def shown(row) -> str:
        return preview_text(prepare(write("r.jsonl", [row]), tokenizer=chatml), chatml, report=False).split("\n", 1)[1]

    assert shown(KINDS["preference"]) == (
        "prompt: Q\nchosen (score 1): [[ good</s>]]\nrejected (score 0): [[ bad one</s>]]"
    )
    assert shown(KINDS["unpaired"]) == "prompt: Q\nanswer 1 (score 1): [[ a</s>]]"
    assert shown(KINDS["ranked"]) == (
        "prompt: Q\nanswer 1 (score 1): [[ a</s>]]\nanswer 2 (score 0.5): [[ b c</s>]]\nanswer 3 (score 0): [[ d</s>]]"
    )
    assert shown(KINDS["parallel"]) == "source: hello\ntarget: [[salut</s>]]"
    assert shown(KINDS["labelled"]) == "text: good film\nlabel: [[0]]"
    assert shown(KINDS["segments"]) == "a b[[ c]]"


def test_preview_in_colour(write, chatml) -> None:
    from rich.console import Console

    console = Console(width=400, force_terminal=True, color_system="standard", record=True, file=io.StringIO())
    console.print(preview(prepare(write("r.jsonl", [KINDS["chat"], {"messages": []}]), tokenizer=chatml), chatml))
    out = console.export_text(styles=True)
    assert "\x1b[1;32mYes.\x1b[0m" in out
    assert "\x1b[1;7;32m<|im_end|>" in out
    assert "\x1b[2massistant↵" in out
    assert "'messages' is empty" in out


def test_import_is_light() -> None:
    heavy = ("torch", "datasets", "transformers", "pyarrow")
    code = f"import sys, luthier.data; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
