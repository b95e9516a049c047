"""Labelled: a text, or two sentences, with a class, a number, or several labels at once.

    in      text, or sentence1 and optional sentence2 (or text_pair); label, or labels as a list
    out     LabelledExample: tokens with the tokenizer's own special tokens, and the label
    trained the label; no token is

    label_names     class names in the order of their indices; found in the data when not given: whole numbers by size,
                    other names by alphabet, or the names that the data set itself stores
    pair_separator  between two sentences where the tokenizer itself puts nothing between them
    problem_type    auto: numbers with a fraction are a regression, lists are several labels at once, the rest classes
Indices and names are in the report, so that evaluation rows can be given the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from luthier.core.batch import LabelledExample
from luthier.core.method import LuthierError, RowError
from luthier.core.subject import separates
from luthier.data._family import Encoded, RowType
from luthier.data._tokens import whole

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Labelled(RowType):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = LabelledExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "sentence1"), ("label", "labels"))
    optional: ClassVar[tuple[str, ...]] = ("sentence2", "text_pair")
    label_names: tuple[str, ...] | None = None
    pair_separator: str = "\n"
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"

    def settle(self, rows: Sequence[dict[str, Any]], names: Mapping[str, list[str]]) -> tuple[Self, list[str]]:
        values = [v for v in map(_label, rows) if v is not None]
        problem: Any = self.problem_type if self.problem_type != "auto" else _problem(values)
        if problem == NUMBER:
            return replace(self, problem_type=problem), ["labels are numbers (regression)"]
        stored = names.get("labels" if any("labels" in r for r in rows) else "label")
        found = self.label_names or (tuple(stored) if stored else _names(values, problem))
        return replace(self, problem_type=problem, label_names=found), [f"{len(found)} labels ({problem})"]

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], indices: Sequence[int], tokenizer: Any
    ) -> list[Encoded | RowError]:
        results: list[Any] = []
        for row in rows:
            try:
                results.append((*_texts(row), self._index(_label(row))))
            except RowError as error:
                results.append(error)
        if not separates(tokenizer):
            results = [self._joined(*r) if isinstance(r, tuple) and r[1] is not None else r for r in results]
        for paired in (False, True):
            chosen = [i for i, r in enumerate(results) if isinstance(r, tuple) and (r[1] is not None) == paired]
            texts = [(results[i][0], results[i][1]) if paired else results[i][0] for i in chosen]
            made = whole(texts, tokenizer, self.max_length, self.truncation_mode == "keep_end")
            for i, tokens in zip(chosen, made):
                results[i] = self._example(indices[i], *tokens, results[i][2])
        return results

    def _joined(self, first: str, second: str, label: Any) -> tuple[str, None, Any]:
        return first + self.pair_separator + second, None, label

    def _example(self, index: int, ids: list[int], types: list[int] | None, n: int, label: Any) -> Encoded | RowError:
        try:
            fits = self.fits(n)
        except RowError as error:
            return error
        if not ids:
            return RowError("the text has no tokens")
        return Encoded(LabelledExample(index, ids, label, types), set() if fits else {"cut"})

    def _index(self, value: Any) -> int | float | list[float]:
        if value is None:
            raise RowError("no label")
        try:
            if self.problem_type == NUMBER:
                return [float(v) for v in value] if isinstance(value, list) else float(value)
        except (TypeError, ValueError):
            raise RowError(f"label {value!r} is not a number") from None
        if not isinstance(value, list):
            if isinstance(value, float) and self.label_names is None:
                return value
            return self._position(value)
        return self._vector(value)

    def _vector(self, value: list[Any]) -> list[float]:
        names = self.label_names
        if names is None:
            raise RowError("several labels at once need label_names")
        if len(value) == len(names) and all(v in (0, 1) for v in value) and not set(names) & {"0", "1"}:
            return [float(v) for v in value]
        on = {self._position(v) for v in value}
        return [float(i in on) for i in range(len(names))]

    def _position(self, value: Any) -> int:
        """Index of a label: by its name, or a whole number that is the index already."""
        names, word = self.label_names, _word(value)
        if names is None:
            if isinstance(value, int):
                return int(value)
            raise RowError(f"label {value!r} needs label_names")
        if word in names:
            return names.index(word)
        if isinstance(value, int) and 0 <= value < len(names):
            return int(value)
        raise RowError(f"label {value!r} is not one of {', '.join(names)}")


def _texts(row: dict[str, Any]) -> tuple[str, str | None]:
    first = row.get("text") if row.get("text") is not None else row.get("sentence1")
    second = row.get("sentence2") if row.get("sentence2") is not None else row.get("text_pair")
    if not isinstance(first, str) or not (second is None or isinstance(second, str)):
        raise RowError("no 'text' or 'sentence1'" if first is None else "the text is not text")
    return first, second


def _label(row: dict[str, Any]) -> Any:
    """The label; a list that csv holds as JSON text is read, an empty cell is no label."""
    value = row.get("labels") if row.get("labels") is not None else row.get("label")
    if isinstance(value, str) and value[:1] == "[":
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return None if value == "" else value


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _number(value: Any, kind: type) -> bool:
    try:
        kind(value)
    except (TypeError, ValueError):
        return False
    return True


def _problem(values: Sequence[Any]) -> str:
    kinds = {type(v) for v in values}
    if list in kinds:
        if kinds != {list}:
            raise LuthierError("data: some labels are lists and some are not; say problem_type")
        return MULTI
    if kinds <= {bool, int}:
        return SINGLE
    if kinds <= {int, float}:
        return NUMBER
    if kinds == {str}:
        numbers = all(_number(v, float) for v in values)
        return NUMBER if numbers and not all(_number(v, int) for v in values) else SINGLE
    raise LuthierError(
        f"data: labels are of several kinds ({', '.join(sorted(k.__name__ for k in kinds))}); make them alike, "
        "or say problem_type"
    )


def _names(values: Sequence[Any], problem: str) -> tuple[str, ...]:
    if problem == MULTI:
        lists = [v for v in values if v]
        width = {len(v) for v in lists}
        items = [x for v in lists for x in v]
        if len(width) == 1 and items and all(x in (0, 1) for x in items):
            if all(isinstance(x, int) and not isinstance(x, bool) for x in items) and max(width) <= 2:
                raise LuthierError("data: lists of 0 and 1 may be indices or one mark per label; give label_names")
            return tuple(f"label_{i}" for i in range(width.pop()))
        values = items
    words = {_word(v) for v in values}
    if all(_number(w, int) for w in words):
        return tuple(sorted(words, key=int))
    return tuple(sorted(words))
