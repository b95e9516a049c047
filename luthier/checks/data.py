"""What every row type keeps: the mask decodes to exactly the trained text, nothing is lost without a report.

Rows are made from a type's required columns. What is to be trained in them is written with one set of words, the rest
with another, so that the trained tokens of any type can be read back and compared word by word.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from luthier.checks._battery import on, when
from luthier.checks._compare import require
from luthier.core.batch import (
    IGNORED,
    GroupExample,
    LabelledExample,
    SearchExample,
    SourceTargetExample,
    TaggedExample,
    TextExample,
    collate_groups,
    collate_packed,
    collate_source_target,
    collate_tagged,
    collate_text,
)
from luthier.core.method import DataSource, RowError

TRAINED = ("maple", "river", "stone", "cloud", "amber")
OTHER = ("copper", "window", "garden", "ladder", "pencil")
ANSWERS = ("chosen", "rejected", "completion", "repair", "guided_repair")
"""Columns that are answers to a prompt, in the order of a group."""
DIRECTION = {"source_lang": "en", "target_lang": "de"}
"""Options that say which of two languages is the source, for types that cannot know."""


def _said(words: tuple[str, ...], row: int, n: int = 3) -> str:
    """n words of a set, others for every row."""
    return " ".join(words[(row + k * (row + 1)) % len(words)] for k in range(n))


def _value(column: str, row: int) -> Any:
    trained, other = _said(TRAINED, row), _said(OTHER, row)
    return {
        "messages": [
            {"role": "system", "content": _said(OTHER, row + 1, 2)}, {"role": "user", "content": other},
            {"role": "assistant", "content": trained}, {"role": "user", "content": _said(OTHER, row + 2)},
            {"role": "assistant", "content": _said(TRAINED, row + 1, 2)},
        ],
        "prompt": other + " ",
        "completion": trained,
        "chosen": trained,
        "rejected": _said(TRAINED, row + 1, 4),
        "prompts": [_said(OTHER, row + k, 2 + k) + " " for k in range(2)],
        "repair": trained,
        "guided_repair": _said(TRAINED, row + 1, 4),
        "completions": [_said(TRAINED, row + k, 2 + k) for k in range(4)],
        "scores": [2.0, 1.0, 1.0, 0.0],
        "ranks": [1, 2, 2, 3],
        "text": trained,
        "sentence1": trained,
        "segments": [
            {"text": other + " ", "label": False}, {"text": trained, "label": True}, {"text": " " + other, "label": False},
            {"text": " " + _said(TRAINED, row + 1), "label": True},
        ],
        "input_ids": vocabulary()(trained)["input_ids"],
        "label": row % 2,
        "labels": row % 2,
        "source": other,
        "target": trained,
        "translation": {"en": other, "de": trained},
        "query": other,
        "anchor": other,
        "tokens": [*other.split(), *trained.split()],
        "ner_tags": ["O"] * 3 + ["B-X", "I-X", None],
        "pos_tags": [0, 1, 2, 0, 1, -100],
        "chunk_tags": ["b", "a", "b", None, "a", "b"],
        "tags": ["b", "a", "b", None, "a", "b"],
        "positive": trained,
        "question": other,
        "answers": [{"answer": code, "text": _said(OTHER, row + k)} for k, code in enumerate("AB", 1)],
        "correct_answer": ["A"],
        "comment": trained,
    }[column]  # fmt: skip


def sample(source: DataSource, row: int = 0, alternative: int = 0) -> dict[str, Any]:
    """A row with the type's required columns; where one may stand for another, the `alternative`-th of each."""
    names = {columns[min(alternative, len(columns) - 1)] for columns in source.columns}
    made = {name: _value(name, row) for name in sorted(names)}
    if "chosen" in made:
        made["prompt"] = _value("prompt", row)
    if {"completions", "labels"} <= made.keys():  # one for each step
        made["labels"] = [True, row % 2 == 0, False, True]
    return made


@cache
def vocabulary(layout: str = "causal") -> Any:
    """The sandbox's tokenizer, with the special tokens of a layout."""
    from transformers import PreTrainedTokenizerFast

    from luthier.sandbox import VOCABULARY
    from luthier.sandbox.tokens import shaped

    return shaped(PreTrainedTokenizerFast.from_pretrained(VOCABULARY), layout)


@dataclass(frozen=True)
class World:
    """One way to write a type's columns, and the tokenizer of the models it is for."""

    alternative: int
    layout: str

    @property
    def label(self) -> str:
        return f"columns {self.alternative}, {self.layout} tokenizer"

    @property
    def tokenizer(self) -> Any:
        return vocabulary(self.layout)

    def rows(self, method: DataSource, n: int = 5) -> list[dict[str, Any]]:
        return [sample(method, row, self.alternative) for row in range(n)]

    def settled(self, method: DataSource) -> Any:
        """The method with what it learns from all rows."""
        known = {f.name for f in fields(method)}  # type: ignore[arg-type]
        told = replace(method, **{k: v for k, v in DIRECTION.items() if k in known})  # type: ignore[type-var]
        return told.settle(self.rows(told), {})[0]  # type: ignore[attr-defined]

    def examples(self, method: DataSource, n: int = 5) -> list[Any]:
        told = self.settled(method)
        return [told.encode(row, i, self.tokenizer) for i, row in enumerate(self.rows(told, n))]


def worlds(method: DataSource) -> list[World]:
    layouts = {LabelledExample: "encoder", SearchExample: "encoder", SourceTargetExample: "seq2seq"}
    layout = layouts.get(method.example_kind, "causal")  # type: ignore[attr-defined]
    return [World(i, layout) for i in range(max(len(columns) for columns in method.columns))]


texts_only = when(lambda method: method.example_kind is TextExample)
tokens_trained = when(lambda method: method.example_kind not in (LabelledExample, SearchExample, TaggedExample))
tokens_tagged = when(lambda method: method.example_kind is TaggedExample)
limited = when(lambda method: "max_length" in {f.name for f in fields(method)})
first_columns = on(lambda world: world.alternative == 0)


def _words(text: str) -> list[str]:
    return [w for w in re.findall(r"[a-z]+", text.lower()) if w in TRAINED or w in OTHER]


def _strings(value: Any) -> list[str]:
    """All texts in a row's value, in order."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [s for part in parts for s in _strings(part)]


def _wanted(row: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    text = " ".join(s for c in columns if c in row for s in _strings(row[c]))
    return [w for w in _words(text) if w in TRAINED]


# ------------------------------------------------------------------------------------------------ checks


@tokens_trained
def check_trained_text(method: DataSource, world: World) -> None:
    """The trained tokens decode to exactly the text that is to be trained, in its order, and to nothing else."""
    tokenizer = world.tokenizer
    for row, example in zip(world.rows(method), world.examples(method)):
        if isinstance(example, GroupExample):
            if "completions" in row:
                row = {str(k): answer for k, answer in enumerate(row["completions"])}
            columns = [(c,) for c in (row if "0" in row else ANSWERS) if c in row]
            if example.given is not None:  # one answer after several prompts
                columns *= len(example.given)
            trained = [a[g:] for a, g in zip(example.answers, example.given or [0] * len(columns), strict=True)]
            parts: list[tuple[list[int], tuple[str, ...]]] = list(zip(trained, columns, strict=True))
        elif isinstance(example, SourceTargetExample):
            parts = [(example.target, ("target", "translation"))]
        else:
            parts = [([i for i, c in zip(example.ids, example.counts) if c], tuple(row))]
        for ids, of in parts:
            wanted = _wanted(
                {**row, "input_ids": tokenizer.decode(row["input_ids"])} if "input_ids" in row else row, of
            )
            found = _words(tokenizer.decode(ids))
            require(found == wanted, f"trained tokens read {found}, the row says {wanted}")


def check_whole_text(method: DataSource, world: World) -> None:
    """All tokens of an example decode to all words of the row."""
    for row, example in zip(world.rows(method), world.examples(method)):
        if isinstance(example, GroupExample) and example.given is not None:
            for asked, answer in zip(row["prompts"], example.answers, strict=True):
                found = _words(world.tokenizer.decode(example.prompt + answer))
                wanted = _words(asked + row["completion"])
                require(found == wanted, f"tokens read {found}, the row says {wanted}")
            continue
        ids = _all_ids(example)
        if "input_ids" in row:
            row = {"input_ids": world.tokenizer.decode(row["input_ids"])}
        wanted = sorted(w for s in _strings(row) for w in _words(s))
        found = sorted(_words(world.tokenizer.decode(ids)))
        require(found == wanted, f"tokens read {found}, the row says {wanted}")


def _all_ids(example: Any) -> list[int]:
    if isinstance(example, GroupExample):
        return [*example.prompt, *(t for a in example.answers for t in a)]
    if isinstance(example, SearchExample):
        return [t for part in example.sequences for t in part]
    return [*example.ids, *getattr(example, "target", [])]


def check_kind(method: DataSource, world: World) -> None:
    """Examples are of the kind that is stated, carry their row, and hold tokens of the vocabulary."""
    for row, example in enumerate(world.examples(method)):
        require(type(example) is method.example_kind, f"a {type(example).__name__} was made")  # type: ignore[attr-defined]
        require(example.row == row and len(example) > 0, f"row {row}: row {example.row}, {len(example)} tokens")
        known = len(world.tokenizer)
        require(all(0 <= t < known for t in _all_ids(example)), "a token is not in the vocabulary")


def check_bad_rows(method: DataSource, world: World) -> None:
    """A row that cannot be used gives a RowError with a reason in one line, in its place, and harms no other row."""
    told, good = world.settled(method), world.rows(method, 3)
    broken: list[dict[str, Any]] = [{}, dict.fromkeys(good[0])]
    rows = [good[0], broken[0], good[1], broken[1], good[2]]
    out = told.encode_rows(rows, [10, 11, 12, 13, 14], world.tokenizer)
    require(len(out) == len(rows), f"{len(rows)} rows in, {len(out)} results")
    for index, result in zip(range(10, 15), out):
        if index in (11, 13):
            require(
                isinstance(result, RowError) and bool(str(result)) and "\n" not in str(result),
                f"broken row gave {result!r}",
            )
        else:
            require(not isinstance(result, RowError), f"good row {index} was refused: {result}")
            require(result.example.row == index, f"row {index} came back as row {result.example.row}")


def check_one_by_one(method: DataSource, world: World) -> None:
    """Rows encoded together are the rows encoded one by one, and a second time gives the same."""
    told, rows = world.settled(method), world.rows(method)
    together = [r.example for r in told.encode_rows(rows, range(len(rows)), world.tokenizer)]
    require(together == world.examples(method), "rows together and one by one differ")
    again = [r.example for r in told.encode_rows(rows, range(len(rows)), world.tokenizer)]
    require(together == again, "the same rows gave other examples the second time")


def check_prepare(method: DataSource, world: World) -> None:
    """Rows in = examples out + rejected + left out; the same source has the same hash, a sample the seed's order."""
    from luthier.data import prepare

    rows: list[dict[str, Any]] = world.rows(method, 6)
    rows.insert(3, dict.fromkeys(rows[0]))
    settled = world.settled(method)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))

        def made(limit: int | None = None) -> Any:
            return prepare(str(file), tokenizer=world.tokenizer, type=settled, limit=limit, seed=1)

        whole, again, some, same_some = made(), made(), made(4), made(4)
    for prepared, found in ((whole, 7), (some, 7)):
        report = prepared.report
        told = report.examples + len(report.rejected) + report.rows_left_out
        require(report.rows_found == found == told, f"{report.rows_found} rows found, {told} accounted for")
    rejected = whole.report.rejected
    require(len(rejected) == 1 and "4" in rejected[0].origin and bool(rejected[0].reason), f"reported as {rejected}")
    require(again.report.sha256 == whole.report.sha256, "the same rows have another hash")
    require(some.examples == same_some.examples, "the same seed took other rows")


@limited
def check_max_length(method: DataSource, world: World) -> None:
    """A sequence is never longer than max_length; cut rows keep the marks of the tokens they keep; reject reports."""
    full = world.examples(method)
    for limit in (4, 9):
        short = replace(world.settled(method), max_length=limit)
        rows = world.rows(method)
        for example, result in zip(full, short.encode_rows(rows, range(len(rows)), world.tokenizer)):
            if isinstance(result, RowError):
                continue  # nothing that is trained was left: reported, not lost
            _fits(result.example, example, limit)
        strict = replace(short, overlong="reject").encode_rows(rows, range(len(rows)), world.tokenizer)
        for example, result in zip(full, strict):
            require(isinstance(result, RowError) or result.example == example, "overlong: reject cut a row")


def _fits(short: Any, full: Any, limit: int) -> None:
    if isinstance(short, GroupExample):
        require(len(short.prompt) + max(map(len, short.answers)) <= limit, "prompt and answer exceed max_length")
        return
    if isinstance(short, SearchExample):
        require(max(map(len, short.sequences)) <= limit, f"a text is longer than max_length {limit}")
        return
    require(len(short.ids) <= limit, f"{len(short.ids)} tokens at max_length {limit}")
    if isinstance(short, TextExample):
        n = len(short.ids)
        kept = (short.ids, short.counts) == (full.ids[:n], full.counts[:n])
        require(kept, "a cut row is not the beginning of the whole one, with the same marks")


@tokens_tagged
def check_tags(method: DataSource, world: World) -> None:
    """Classes are those of the row, in its order; each lies on the first token of its word, or on the last of its step."""
    told, tokenizer = world.settled(method), world.tokenizer
    for row, example in zip(world.rows(method), world.examples(method)):
        at = [t for t, tag in enumerate(example.tags) if tag != IGNORED]
        said = [told.label_names[example.tags[t]] for t in at]
        if "completions" in row:
            wanted = ["right" if label else "wrong" for label in row["labels"]]
            for k, t in enumerate(at):
                text = " ".join([row["prompt"], *row["completions"][: k + 1]])
                read = _words(tokenizer.decode(example.ids[: t + 1]))
                require(read == _words(text), f"step {k} is judged behind {read}, the row says {_words(text)}")
        else:
            tags = next(row[c] for c in row if c != "tokens")
            known = [(w, tag) for w, tag in zip(row["tokens"], tags) if tag is not None and tag != IGNORED]
            wanted = [str(tag) for _, tag in known]
            for t, (word, _) in zip(at, known):
                rest = tokenizer.decode(example.ids[t:]).strip()
                require(rest.startswith(word), f"the class of '{word}' lies on a token before '{rest[:20]}'")
        require(said == wanted, f"classes are {said}, the row says {wanted}")


@tokens_tagged
def check_tagged_batch(method: DataSource, world: World) -> None:
    """A batch scores exactly the tokens that have a class, each at its own place, padded on either side."""
    examples = world.examples(method)
    wanted = [(e.ids[t], tag) for e in examples for t, tag in enumerate(e.tags) if tag != IGNORED]
    for side in ("right", "left"):
        batch = collate_tagged(examples, 0, side)
        ids = batch.ids.flatten()[batch.source].tolist()
        require(
            batch.target is not None and list(zip(ids, batch.target.tolist())) == wanted,
            f"padded {side}: the scored tokens are others",
        )


@tokens_trained
def check_batch(method: DataSource, world: World) -> None:
    """A batch scores exactly the trained tokens of its examples, predicted from the token before; packed the same."""
    examples = world.examples(method)
    if isinstance(examples[0], GroupExample):
        batches = [collate_groups(examples, 0, share_prompt=share) for share in (False, True)]
        wanted = [t for e in examples for a, g in zip(e.answers, e.given or [0] * len(e.answers)) for t in a[g:]]
    elif isinstance(examples[0], SourceTargetExample):
        batches = [collate_source_target(examples, 0, 0)]
        wanted = [t for e in examples for t in e.target]
    else:
        batches = [
            collate_text(examples, 0),
            collate_text(examples, 0, "left"),
            collate_packed([examples[:2], examples[2:]], 0),
        ]
        wanted = [t for e in examples for i, (t, c) in enumerate(zip(e.ids, e.counts)) if c and i > 0]
    for batch in batches:
        require(
            batch.target is not None and batch.target.tolist() == wanted, "the scored tokens are not the trained ones"
        )
