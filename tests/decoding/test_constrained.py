"""Constrained answers: they match, they end, they fit; schemas, sums of models, and what is refused."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("outlines_core", reason="an extra: pip install 'luthier[constrained]'")

from tiny_models import gpt2, llama, tokenizer

import luthier
from luthier import sandbox
from luthier.core.config import ConfigError
from luthier.core.method import Limits, LuthierError
from luthier.core.subject import Subject
from luthier.decoding.constrained import Constrained
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.verbs.load import decoder_of

PROMPTS = ["the cat", "in an on abcd er", "x"]
SCHEMA = {
    "type": "object", "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
}  # fmt: skip
DATE = r"\d{4}-\d{2}-\d{2}(, \d{4}-\d{2}-\d{2})*"


def letters(*words: str) -> tuple[bytes, ...]:
    return tuple(w.encode() for w in words)


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("choose", ["greedy", {"name": "nucleus", "temperature": 2.0}])
def test_untrained_models_write_what_they_must(model: Any, choose: Any) -> None:
    subject = Subject(model(), tokenizer(), decoder=Constrained(regex=DATE, choose=choose))
    for room in (10, 24, 40):
        for text in subject.generate(PROMPTS, room):
            assert re.fullmatch(DATE, text), text


@pytest.mark.parametrize("room", [24, 60])
def test_json_of_a_schema(room: int) -> None:
    for seed in range(3):
        decoder = Constrained(json_schema=SCHEMA, choose={"name": "nucleus", "temperature": 1.5})
        for text in Subject(llama(), tokenizer(), decoder=decoder).generate(PROMPTS, room, seed=seed):
            told = json.loads(text)
            assert isinstance(told["name"], str) and isinstance(told["age"], int)
            assert set(told) <= set(SCHEMA["properties"]) and told.get("kind") in (None, "cat", "dog")


def test_a_schema_as_text_and_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    found = {Constrained(json_schema=told).expression for told in (SCHEMA, json.dumps(SCHEMA), str(file))}
    assert len(found) == 1


def test_random_walks_match_and_never_get_stuck() -> None:
    tokens, rng, pattern = letters("a", "b", "ab", "ba", "12", ",", "", "a,"), random.Random(0), r"(ab?)+(,(12|b+))*"
    decoder, seen = Constrained(regex=pattern, tokens=tokens), set()
    for _ in range(2000):
        limits = Limits(max_new_tokens=rng.randint(1, 9), stop_ids=(6,))
        said: list[int] = []
        while len(said) < limits.max_new_tokens:
            token = rng.choice(decoder.allowed(said, limits))
            if token == 6:
                break
            said.append(token)
        text = b"".join(tokens[t] for t in said).decode()
        assert re.fullmatch(pattern, text), text
        seen.add(text)
    assert len(seen) > 200


def test_a_final_state_goes_on() -> None:
    """The library's own index of this expression has nothing after the first letter."""
    decoder = Constrained(regex="a(xa)*", tokens=letters("a", "x"))
    assert decoder.allowed([0], Limits(max_new_tokens=9, stop_ids=(7,))) == [1, 7]


def test_the_way_out_is_the_shortest_that_the_tokens_have() -> None:
    decoder = Constrained(regex="a(bcd)?e|x+", tokens=letters("a", "b", "c", "d", "e", "bcd", "cde", "x"))
    end = (99,)
    assert decoder.allowed([], Limits(max_new_tokens=1, stop_ids=end)) == [7]
    assert decoder.allowed([0], Limits(max_new_tokens=2, stop_ids=end)) == [4]
    assert decoder.allowed([0], Limits(max_new_tokens=3, stop_ids=end)) == [1, 4, 5]
    assert decoder.allowed([0], Limits(max_new_tokens=5, stop_ids=end)) == [1, 4, 5]
    assert decoder.allowed([0, 1, 6], Limits(max_new_tokens=5, stop_ids=end)) == [99]
    assert decoder.allowed([0, 3], Limits(max_new_tokens=5, stop_ids=end)) == []


def test_tokens_that_lead_nowhere_are_not_said() -> None:
    decoder = Constrained(regex="12|ab", tokens=letters("1", "a", "b"))
    assert decoder.allowed([], Limits(max_new_tokens=5)) == [1]


def test_an_answer_ends_by_itself_without_a_stop_token() -> None:
    decoder = replace(Constrained(regex="yes|no"), choose="greedy").for_tokenizer(tokenizer())
    for found in decoder.generate(llama(), [[7, 8], [9]], Limits(max_new_tokens=9)):
        assert found.stopped and tokenizer().decode(found.ids) in ("yes", "no")


def test_a_free_expression_leaves_greedy_as_it_is() -> None:
    """Up to the first special token, which is no text."""
    model, words = sandbox.load("nano-1m")
    ids = [words(p)["input_ids"] for p in ("<|any|>: a a h l ->", "The king", "x = 12;")]
    free, plain = (
        [g.ids for g in Subject(model, words, decoder=d).generations(ids, 12)]
        for d in (Constrained(regex=r"(.|\n)*"), decoder_of("greedy"))
    )
    texts = [list(takewhile(lambda t: t not in words.all_special_ids, row)) for row in plain]
    assert [row[: len(text)] for row, text in zip(free, texts)] == texts and sum(map(len, texts)) > 12


def test_a_sum_of_models_takes_it_as_its_choice() -> None:
    decoder = ProxyTuning(expert=llama(1), anti_expert=llama(2), choose={"name": "constrained", "regex": DATE})
    for text in Subject(llama(), tokenizer(), decoder=decoder).generate(PROMPTS, 16):
        assert re.fullmatch(DATE, text), text
    from luthier.decoding.contrast import Contrast

    sure = Contrast(amateur=llama(1), alpha=1.0, choose={"name": "constrained", "regex": DATE})
    with pytest.raises(LuthierError, match="ruled out by the model or the sum"):
        Subject(llama(), tokenizer(), decoder=sure).generate(PROMPTS, 16)


def test_on_the_sandbox_by_every_verb(tmp_path: Path) -> None:
    """Generate, evaluate and chat: the same texts, all of which match."""
    from luthier.verbs.generate import generate

    told = {"name": "constrained", "regex": "( [a-l])+"}
    prompts = ["<|any|>: a a h l ->", "<|any|>: e l ->"]
    said = generate("nano-1m", prompts, max_new_tokens=12, decoding=told)
    assert all(re.fullmatch("( [a-l])+", text) for text in said)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": p, "answer": t}) + "\n" for p, t in zip(prompts, said)), encoding="utf-8"
    )
    task = {"name": "same", "scorer": "exact_match", "data": str(rows), "max_new_tokens": 12}
    found = luthier.evaluate("nano-1m", [task], decoding=told)
    assert found["same"]["exact_match"]["value"] == 1.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"regex": "(a"}, "'(a' cannot be used"),
        ({"regex": "a)(b"}, "cannot be used"),
        ({"regex": "^a$"}, "without anchors"),
        ({"regex": "a(?=b)b"}, "look-around"),
        ({"json_schema": "{"}, "json_schema '{' cannot be used"),
        ({"json_schema": {"type": "thing"}}, "Unsupported type: thing"),
        ({"json_schema": "nowhere.json"}, "'nowhere.json' is no file"),
        ({}, "either decoding.regex or decoding.json_schema"),
        ({"regex": "a", "json_schema": {}}, "either decoding.regex or decoding.json_schema"),
        ({"regex": "a", "choose": "beam"}, "not by beam"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(options: dict[str, Any], line: str) -> None:
    with pytest.raises((LuthierError, ConfigError)) as caught:
        decoder_of({"name": "constrained", **options})
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(LuthierError, match=r"shortest answer of '\[x\]\{7\}' takes 7 tokens, max_new_tokens is 5"):
        Subject(llama(), tokenizer(), decoder=Constrained(regex="[a-z]{7}".replace("a-z", "x"))).generate(["x"], 5)
    with pytest.raises(LuthierError, match="can write no answer of 'xyz'"):
        Constrained(regex="xyz", tokens=letters("x", "y")).allowed([], Limits())
    with pytest.raises(LuthierError, match="bytes of the tokens are not known"):
        Constrained(regex="xyz").generate(llama(), [[7]], Limits())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LuthierError, match=r"pip install 'luthier\[constrained\]'"):
        Constrained(regex="never seen before")
