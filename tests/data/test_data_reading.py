"""Every format to rows; nothing is dropped without file, line and reason."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import pytest

from luthier.core.method import LuthierError
from luthier.data import RowTable, read

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(20)]


def as_parquet(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), path)


def as_arrow(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import ipc

    table = pa.Table.from_pylist(ROWS)
    with ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table)


def as_arrow_file(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import ipc

    table = pa.Table.from_pylist(ROWS)
    with ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)


def as_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


WRITERS = {
    "r.jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "r.json": lambda p: p.write_text(json.dumps(ROWS)),
    "object.json": lambda p: p.write_text(json.dumps({"version": 1, "data": ROWS})),
    "lines.json": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "r.csv": lambda p: p.write_text("prompt,completion\n" + "".join(f'"q{i}",a{i}\n' for i in range(20))),
    "r.tsv": lambda p: p.write_text("prompt\tcompletion\n" + "".join(f"q{i}\ta{i}\n" for i in range(20))),
    "r.parquet": as_parquet,
    "r.arrow": as_arrow,
    "file.arrow": as_arrow_file,
    "r.jsonl.gz": as_gzip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats_give_the_same_rows_and_hash(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    table = read(str(tmp_path / name))
    assert table.rows == ROWS
    assert table.found == 20
    assert not table.rejected
    assert table.sha256 == RowTable(ROWS, []).sha256
    assert len(set(table.origins)) == 20
    assert all(o.startswith(str(tmp_path / name)) for o in table.origins)


def test_txt_is_one_row_a_line(write) -> None:
    table = read(write("t.txt", "one\n\n  two \nthree"))
    assert [r["text"] for r in table.rows] == ["one", "  two ", "three"]
    assert [o.rsplit(":", 1)[1] for o in table.origins] == ["1", "3", "4"]


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "one")
    table = read(str(tmp_path / "one"))
    assert table.rows == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert table.names == {"label": ["neg", "pos"]}
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    assert len(read(f"{tmp_path / 'two'}:test")) == 1
    both = read(str(tmp_path / "two"))
    assert len(both) == 2
    assert "test" in both.notes[0]
    with pytest.raises(LuthierError, match="did you mean 'test'"):
        read(f"{tmp_path / 'two'}:tset")
    data.to_parquet(str(tmp_path / "p.parquet"))
    assert read(str(tmp_path / "p.parquet")).names == {"label": ["neg", "pos"]}


def test_folder_of_split_files(write, tmp_path: Path) -> None:
    write("d/train-0.jsonl", ROWS[:3])
    write("d/train-1.jsonl", ROWS[3:5])
    write("d/test.jsonl", ROWS[5:6])
    assert len(read(f"{tmp_path}/d:train")) == 5
    assert len(read(f"{tmp_path}/d", split="test")) == 1
    with pytest.raises(LuthierError, match="choose one of test, train"):
        read(f"{tmp_path}/d")


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("b.jsonl", '{"text": "a"}\n{"text": \n{"text": "c"}', ":2", "not JSON"),
        ("b.jsonl", '{"text": "a"}\n[1]\n{"text": "c"}', ":2", "must be an object"),
        ("b.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}', ":2", "not UTF-8"),
        ("b.json", '[{"text": "a"}, 7, {"text": "c"}]', "[1]", "must be an object"),
        ("b.csv", "text,label\na,1\nb\nc,2\n", ":3", "1 fields, the header has 2"),
        ("b.csv", b"text,label\na,1\n\xff,1\nc,2\n", ":3", "not UTF-8"),
        ("b.tsv", "text\tlabel\na\t1\nb\t2\t3\nc\t1\n", ":3", "3 fields"),
        ("b.txt", b"a\n\xff\nc\n", ":2", "not UTF-8"),
    ],
)
def test_bad_lines_are_rejected_with_their_place(write, name, content, line, reason) -> None:
    path = write(name, content)
    table = read(path)
    assert [r["text"] for r in table.rows] == ["a", "c"]
    assert table.found == 3
    assert [r.origin for r in table.rejected] == [path + line]
    assert reason in table.rejected[0].reason
    with pytest.raises(LuthierError, match="strict: true stops here"):
        read(path, strict=True)


def test_quotes_spoil_neither_csv_nor_tsv(write) -> None:
    assert (
        read(write("q.csv", 'text,label\n"two\nlines, ""quoted""",1\nnext,0\n')).rows[0]["text"]
        == 'two\nlines, "quoted"'
    )
    assert [r["text"] for r in read(write("q.tsv", 'text\tlabel\n"stray\t1\nnext\t0\n')).rows] == ['"stray', "next"]
    assert read(write("q2.csv", 'text,label\n"two\nlines",1\nnext,0\n')).origins[1].endswith(":4")


def test_csv_with_the_row_numbers_of_pandas(write) -> None:
    assert read(write("p.csv", ",text\n0,a\n1,b\n")).rows[1] == {"Unnamed: 0": "1", "text": "b"}


def test_csv_without_header(write) -> None:
    path = write("h.tsv", "a film\t0\nanother\t1\n")
    with pytest.raises(LuthierError, match=r"h\.tsv:1: the first line is not a header .*number the columns"):
        read(path)
    assert read(path, columns={"text": 0, "label": 1}).rows == [
        {"text": "a film", "label": "0"},
        {"text": "another", "label": "1"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[1, 2", r"x\.json:1: not JSON"),
        ("x.json", '{"a": 1}', "found an object with a"),
        ("x.parquet", "no", "not a readable .parquet"),
        ("x.arrow", "no", "not a readable .arrow"),
        ("x.docx", "no", "not a format"),
    ],
)
def test_unreadable_files_are_one_clear_line(write, name, content, message) -> None:
    with pytest.raises(LuthierError, match=message) as error:
        read(write(name, content))
    assert "\n" not in str(error.value)


def test_missing_places(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(LuthierError, match="no such file"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(LuthierError, match="is empty"):
        read([])
    with pytest.raises(LuthierError, match="did you mean 'columns'"):
        read({"path": "x.jsonl", "colums": {}})

    def refuse(name, **options):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nmore")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(LuthierError, match=r"'org/name' is no local path.*Couldn't reach") as error:
        read("org/name")
    assert "\n" not in str(error.value)


def test_hub_goes_through_load_dataset(monkeypatch) -> None:
    import datasets

    asked = {}

    def load(path, **options):
        asked.update(options, id=path)
        return datasets.DatasetDict({s: datasets.Dataset.from_list(ROWS) for s in ("train", "test")})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(read("openai/gsm8k?name=main:test#5")) == 5
    assert asked == {"id": "openai/gsm8k", "name": "main"}
    with pytest.raises(LuthierError, match="did you mean 'train'"):
        read("openai/gsm8k:trian")


def test_sampling_splits_and_limits(write) -> None:
    path = write("r.jsonl", ROWS)
    a, b, c = read(f"{path}#7"), read(f"{path}#7"), read(f"{path}#7", seed=1)
    assert a.rows == b.rows != c.rows
    assert len(a) == 7
    assert a.left_out == 13
    order = [ROWS.index(r) for r in a.rows]
    assert order == sorted(order)
    assert read(f"{path}#99").notes
    assert read(path, limit=4).rows == ROWS[:4]
    assert read(path, limit=4).left_out == 16
    with pytest.raises(LuthierError, match="has no splits"):
        read(f"{path}:train")
    assert read({"path": path, "n": 3}).found == 20


def test_a_place_with_marks_in_its_name_is_not_cut(write) -> None:
    assert len(read(write("odd#3.jsonl", ROWS))) == 20


def test_sources_are_concatenated(write) -> None:
    one, two = write("1.jsonl", ROWS[:2]), write("2.csv", "question,answer\nx,y\n")
    table = read([one, {"path": two, "columns": {"prompt": "question", "completion": "answer"}}])
    assert table.rows == [*ROWS[:2], {"prompt": "x", "completion": "y"}]
    assert table.sources == [one, two]
    assert table.found == 3


def test_environment_in_paths(write, tmp_path: Path, monkeypatch) -> None:
    write("r.jsonl", ROWS)
    monkeypatch.setenv("LUTHIER_TEST_PLACE", str(tmp_path))
    assert len(read("${LUTHIER_TEST_PLACE}/r.jsonl")) == 20
    monkeypatch.delenv("LUTHIER_TEST_PLACE")
    with pytest.raises(LuthierError, match="LUTHIER_TEST_PLACE, which is not set"):
        read("${LUTHIER_TEST_PLACE}/r.jsonl")


def test_columns_map_names(write) -> None:
    path = write("c.jsonl", [{"question": "q", "meta": {"answer": "a"}, "id": 3}, {"question": "r", "id": 4}])
    table = read(path, columns={"prompt": "question", "completion": "meta.answer"})
    assert table.rows[0] == {"meta": {"answer": "a"}, "id": 3, "prompt": "q", "completion": "a"}
    assert table.rejected[0].origin.endswith(":2")
    assert table.defined == ("prompt", "completion")
    with pytest.raises(LuthierError, match="unknown column 'questoin'; did you mean 'question'"):
        read(path, columns={"prompt": "questoin"})
    with pytest.raises(LuthierError, match="new name: name in the file"):
        read(path, columns={"question": "prompt"})


def test_columns_can_swap(write) -> None:
    path = write("s.jsonl", [{"prompt": "1", "completion": "2"}])
    assert read(path, columns={"prompt": "completion", "completion": "prompt"}).rows == [
        {"prompt": "2", "completion": "1"}
    ]


def test_templates(write) -> None:
    path = write("t.jsonl", [{"q": "one", "a": "two"}, {"q": "three"}])
    table = read(path, template={"prompt": "Q: {{ q }}\n", "completion": "{{ a }}"})
    assert table.rows == [{"q": "one", "a": "two", "prompt": "Q: one\n", "completion": "two"}]
    assert "'a' is undefined" in table.rejected[0].reason
    assert read(path, template="{{ q }}!").rows[0]["text"] == "one!"
    with pytest.raises(LuthierError, match="template, line 1"):
        read(path, template="{{ q ")
    unsafe = read(path, template="{{ q.__class__.__mro__ }}")
    assert not unsafe.rows
    assert "unsafe" in unsafe.rejected[0].reason


def test_sandbox_options_reach_the_world(monkeypatch) -> None:
    asked = {}

    def rows(world, **options):
        asked.update(options, world=world)
        return [{"text": "x"}] * options["n"]

    monkeypatch.setitem(sys.modules, "luthier.sandbox", types.SimpleNamespace(rows=rows))
    monkeypatch.setattr("luthier.sandbox", sys.modules["luthier.sandbox"], raising=False)
    table = read("sandbox:facts?task=derived&part=new&n=3:test")
    assert asked == {"world": "facts", "task": "derived", "part": "new", "n": 3, "split": "test"}
    assert table.origins == ["sandbox:facts[0]", "sandbox:facts[1]", "sandbox:facts[2]"]
    with pytest.raises(LuthierError, match="did you mean 'task'"):
        read("sandbox:facts?tsk=a")
    with pytest.raises(LuthierError, match="whole number"):
        read("sandbox:facts?n=many")


def test_a_real_sandbox_world() -> None:
    assert len(read("sandbox:sequence?task=copy&n=5")) == 5
    with pytest.raises(LuthierError, match="sequence"):
        read("sandbox:sequense")
