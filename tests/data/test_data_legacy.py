"""Older formats become today's rows, and the same rows give the same tokens and masks in all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.method import LuthierError
from luthier.data import detect, prepare, read

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "Add.\n1 2"},
    {"role": "assistant", "content": "3"},
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
FORMATS = {
    "messages": {"messages": CONVERSATION},
    "alpaca": {
        "instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["Who?", "Me."]]
    },
    "sharegpt": {"conversations": [{"from": NAMES[m["role"]], "value": m["content"]} for m in CONVERSATION]},
    "sharegpt-system": {
        "conversations": [{"from": NAMES[m["role"]], "value": m["content"]} for m in CONVERSATION[1:]],
        "system": "Be brief.",
    },
    "query": {"query": "Add.\n1 2", "response": "3", "history": [["Who?", "Me."]], "system": "Be brief."},
    "messages-as-text": {"messages": json.dumps(CONVERSATION)},
    "content-parts": {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in CONVERSATION]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_same_rows_same_tokens_and_masks(write, chatml, name: str) -> None:
    expected = prepare(write("m.jsonl", [FORMATS["messages"]]), tokenizer=chatml).examples[0]
    got = prepare(write("x.jsonl", [FORMATS[name]]), tokenizer=chatml)
    assert got.examples[0] == expected
    assert got.report.type == "chat"
    if name.startswith(("alpaca", "sharegpt", "query")):
        assert "converted from" in got.report.why


def test_single_turn_prompt_and_completion_as_messages(write, chatml) -> None:
    rows = {
        "p.jsonl": {"prompt": "Hi", "completion": "Ho"},
        "c.jsonl": {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Ho"}],
        },
        "m.jsonl": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        "a.jsonl": {"instruction": "Hi", "output": "Ho", "input": "", "history": None},
    }
    options = {"apply_chat_template": True}
    made = [prepare(write(n, [r]), tokenizer=chatml, options=options).examples[0] for n, r in rows.items()]
    assert all(e == made[0] for e in made)


def test_sharegpt_calls_tools_and_roles(write) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny.", "loss": True},
        ],
        "tools": '[{"name": "weather"}]',
    }
    bad = {"conversations": [{"from": "humann", "value": "x"}]}
    table = read(write("s.jsonl", [row, bad, {"conversations": []}, {"conversations": [{"from": "human"}]}]))
    roles = [m["role"] for m in table.rows[0]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert table.rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert table.rows[0]["messages"][3]["loss"] is True
    assert table.rows[0]["tools"] == '[{"name": "weather"}]'
    reasons = [r.reason for r in table.rejected]
    assert "did you mean 'human'" in reasons[0]
    assert "not a list of turns" in reasons[1]
    assert "no 'value'" in reasons[2]


def test_pairs_and_judged_answers(write, chatml) -> None:
    pair = {"prompt": [{"role": "user", "content": "Q"}], "chosen": "good", "rejected": "bad"}
    spellings = {
        "alpaca": {"instruction": "Q", "chosen": "good", "rejected": "bad"},
        "sharegpt": {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        "swift": {"query": "Q", "response": "good", "rejected_response": "bad"},
        "openai": {
            "input": {"messages": [{"role": "user", "content": "Q"}]},
            "preferred_output": [{"role": "assistant", "content": "good"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}],
        },
    }
    expected = prepare(write("p.jsonl", [pair]), tokenizer=chatml).examples[0]
    for name, row in spellings.items():
        got = prepare(write(f"{name}.jsonl", [row]), tokenizer=chatml)
        assert got.examples[0] == expected, name
    judged = prepare(write("k.jsonl", [{"instruction": "Q", "output": "A", "kto_tag": False}]), tokenizer=chatml)
    assert judged.report.type == "unpaired"
    assert judged.examples[0].scores == [0.0]


def test_rows_of_today_are_not_converted() -> None:
    from luthier.data._legacy import recognise

    assert recognise(["messages", "conversations"]) is None
    assert recognise(["prompt", "query", "response"]) is None
    assert recognise(["text", "label"]) is None
    with pytest.raises(LuthierError, match=r"fit more than one row type: .*chat.*text"):
        detect(("messages", "text"))


def test_alpaca_with_a_text_column_is_ambiguous(write, chatml) -> None:
    path = write("t.jsonl", [{"instruction": "a", "input": "", "output": "b", "text": "a b"}])
    with pytest.raises(LuthierError, match="say which"):
        prepare(path, tokenizer=chatml)
    assert prepare(path, tokenizer=chatml, type="chat").report.type == "chat"


REGISTRY = {
    "chat_de": {"file_name": "c.json", "formatting": "sharegpt", "columns": {"messages": "turns", "system": "sys"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"}},
    "plain": {"file_name": "a.json", "columns": {"prompt": "q", "response": "r"}, "num_samples": 1},
    "pairs": {"file_name": "d.json", "ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
    "judged": {"file_name": "k.json", "formatting": "sharegpt", "columns": {"messages": "turns", "kto_tag": "ok"},
               "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"}},
    "openai": {"file_name": "o.json", "formatting": "openai"},
    "books": {"file_name": "p.json", "columns": {"prompt": "body"}},
    "odd": {"file_name": "p.json", "formating": "alpaca"},
    "hub": {"hf_hub_url": "org/name", "subset": "main"},
}  # fmt: skip


@pytest.fixture
def registry(write, tmp_path: Path) -> Path:
    write("lf/dataset_info.json", REGISTRY)
    write("lf/c.json", [{"turns": [{"who": "U", "what": "Q"}, {"who": "A", "what": "R"}], "sys": "S"}])
    write("lf/a.json", [{"q": "Q", "r": "R"}, {"q": "Q2", "r": "R2"}])
    write("lf/d.json", [{"q": "Q", "c": "C", "r": "R"}])
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]
    write("lf/k.json", [{"turns": turns, "ok": True}])
    write("lf/o.json", [{"messages": turns}])
    write("lf/p.json", [{"body": "Once upon a time."}])
    return tmp_path / "lf"


@pytest.mark.parametrize(
    ("name", "columns", "kind"),
    [
        ("chat_de", {"messages"}, "chat"),
        ("plain", {"messages"}, "chat"),
        ("pairs", {"prompt", "chosen", "rejected"}, "preference"),
        ("judged", {"prompt", "completion", "label"}, "unpaired"),
        ("openai", {"messages"}, "chat"),
        ("books", {"text"}, "text"),
    ],
)
def test_llama_factory_entries(registry: Path, chatml, name: str, columns: set[str], kind: str) -> None:
    table = read(f"{registry}:{name}")
    assert len(table) == 1
    assert set(table.rows[0]) == columns
    assert prepare(table, tokenizer=chatml).report.type == kind


def test_llama_factory_mistakes_and_hub_entries(registry: Path, monkeypatch) -> None:
    import datasets

    with pytest.raises(LuthierError, match="did you mean 'formatting'"):
        read(f"{registry}:odd")
    with pytest.raises(LuthierError, match="did you mean 'pairs'"):
        read(f"{registry}:pair")
    with pytest.raises(LuthierError, match="choose a data set"):
        read(str(registry))
    seen = {}
    rows = datasets.Dataset.from_list([{"instruction": "a", "output": "b"}])
    monkeypatch.setattr("datasets.load_dataset", lambda path, **o: seen.update(o, id=path) or rows)
    assert read(f"{registry}/dataset_info.json:hub").rows[0]["messages"][1]["content"] == "b"
    assert seen == {"id": "org/name", "name": "main"}
