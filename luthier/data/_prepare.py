"""Rows to examples: read, name the type, check the options, encode in batches, report, keep on disk.

What goes in comes out or is reported: rows found = examples + rejected rows + rows left out by sampling or limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from luthier.core.batch import Example, GroupExample, LabelledExample, SourceTargetExample, TaggedExample, TextExample
from luthier.core.method import DataSource, LuthierError, RowError
from luthier.data import _cache
from luthier.data._detection import detect, named, row_types
from luthier.data._reading import Rejected, RowTable, read
from luthier.data._words import nearest

DATA_VERSION = 2  # raised when the same rows and options give other examples: older caches are then not used
_CHUNK = 1000
OBJECTIVE = "objective"
"""Column of any row type that says which part of a mixed objective a row is for: a name or several; none: all."""


@dataclass
class Report:
    """What happened between the sources and the examples.

    rows_found      rows in the sources = examples + rejected + rows_left_out
    truncated       examples cut to max_length; answers_cut: those that lost trained tokens
    marks           other things that happened on the way -> number of rows
    lengths         tokens of an example: min, mean, median, p95, max
    histogram       (from, to, examples) over the lengths
    tokens          tokens of all examples; trained_tokens of them are trained
    sha256          hash of the prepared examples; rows_sha256: of the rows
    cache           key, path and `reused`; None where no cache folder was given
    """

    sources: list[str]
    type: str
    why: str
    rows_found: int
    rows_left_out: int
    examples: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    truncated: int = 0
    answers_cut: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    lengths: dict[str, float] = field(default_factory=dict)
    histogram: list[tuple[int, int, int]] = field(default_factory=list)
    label_names: list[str] | None = None
    label_counts: dict[str, int] = field(default_factory=dict)
    template: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows_sha256: str = ""
    sha256: str = ""
    cache: dict[str, Any] | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, for the manifest of a run."""
        return asdict(self) | {"rejected": [r._asdict() for r in self.rejected]}


@dataclass
class Prepared:
    """Examples with their report.

    source         the settled row type: give it as `type` to prepare evaluation rows with the same labels and options
    origins        file and line of each example
    chat_template  the template in use, to be saved with the model; None where there is none
    """

    examples: list[Example]
    lengths: list[int]
    report: Report
    source: DataSource
    origins: list[str]
    chat_template: str | None = None

    def __len__(self) -> int:
        return len(self.examples)


def prepare(
    source: Any,
    *,
    tokenizer: Any,
    type: str | DataSource | None = None,
    columns: Mapping[str, str | int] | None = None,
    template: str | Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    limit: int | None = None,
    shuffle: int | None = None,
    seed: int = 0,
    strict: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    keep: Sequence[str] = (),
) -> Prepared:
    """Examples of a source (as in `read`) or of a RowTable. `options` are fields of the row type.

    `keep` names columns whose values examples carry along in their `extras`.
    """
    began = time.perf_counter()
    table = source if isinstance(source, RowTable) else read(
        source, split=split, columns=columns, template=template, limit=limit, seed=seed, strict=strict,
        shuffle=shuffle,
    )  # fmt: skip
    if not table.rows:
        raise LuthierError(f"data: no row to use in {', '.join(table.sources)}{_first(table.rejected)}")
    method, why = _choose(type, table, options or {})
    rows, added = method.completed(table.rows)  # type: ignore[attr-defined]
    table = table if rows is table.rows else replace(table, rows=list(rows))
    method, notes = method.settle(table.rows, table.names)  # type: ignore[attr-defined]
    report = Report(
        table.sources, method.name, why, table.found, table.left_out, rejected=list(table.rejected),
        converted=table.converted, notes=[*table.notes, *added, *notes], rows_sha256=table.sha256, options=_plain(method),
    )  # fmt: skip
    template_text = method.template_text(tokenizer) if isinstance(method, _templated()) else None
    report.template = _template_words(template_text, tokenizer)
    if template_text and method.apply_chat_template == "auto" and all(map(_plain_texts, table.rows)):  # type: ignore[attr-defined]
        report.template = "none (plain texts; apply_chat_template: true renders them)"
    report.label_names = list(getattr(method, "label_names", None) or []) or None
    path = _cache_path(cache_dir, table, method, template_text, tokenizer, keep)
    held = _cache.load(path) if path else None
    examples, arrays = _reused(held, report) if held else _built(method, table, tokenizer, report, keep)
    if strict and len(report.rejected) > len(table.rejected):
        origin, reason = report.rejected[len(table.rejected)]
        raise LuthierError(f"{origin}: {reason} (strict: true stops here; strict: false reports and skips)")
    if not examples:
        places = ", ".join(table.sources)
        raise LuthierError(f"data: no row of {places} can be used as {method.name}{_first(report.rejected)}")
    if path and not held:
        _cache.save(path, arrays, _header(report, examples, len(table.rejected)))
    if path:
        report.cache = {"key": path.stem, "path": str(path), "reused": bool(held)}
    report.seconds = round(time.perf_counter() - began, 3)
    lengths = [len(e) for e in examples]
    return Prepared(examples, lengths, report, method, [table.origins[e.row] for e in examples], template_text)


def _first(rejected: Sequence[Rejected]) -> str:
    return f"; {len(rejected)} rejected, the first: {rejected[0].origin}: {rejected[0].reason}" if rejected else ""


def _choose(type_: str | DataSource | None, table: RowTable, options: Mapping[str, Any]) -> tuple[DataSource, str]:
    """The row type with its options, and why it is this one."""
    if isinstance(type_, DataSource):
        return _build(type_.__class__, type_.name, _plain(type_) | dict(options)), "given"
    if type_ is not None:
        cls = named(type_)
        _has_columns(cls, type_, table)
        return _build(cls, type_, options), "given by type"
    name, why = _detected(table)
    return _build(named(name), name, options), why


def _detected(table: RowTable) -> tuple[str, str]:
    made = ", ".join(f"{s} converted from {f}" for s, f in table.converted.items())
    if table.defined and not made:
        try:  # columns that the user defined settle the type before those that happen to be there
            name, why = detect(table.defined)
            if not row_types()[name].bare or _bare_rows(table):  # type: ignore[attr-defined]
                return name, f"{why}, as mapped"
        except LuthierError:
            pass
    name, why = _detected_rows(table)
    return name, f"{why}; {made}" if made else why


def _bare_rows(table: RowTable) -> bool:
    """Whether the other columns make no more of the rows than what was defined."""
    try:
        return row_types()[_detected_rows(table)[0]].bare  # type: ignore[attr-defined]
    except LuthierError:
        return True


def _detected_rows(table: RowTable) -> tuple[str, str]:
    """The type by all columns; where sources with other columns were joined, the one type that all of them have."""
    try:
        return detect(table.columns)
    except LuthierError:
        shapes = dict.fromkeys(tuple(k for k, v in row.items() if v is not None) for row in table.rows)
        if not 1 < len(shapes) <= 20:
            raise
        try:
            found = dict(detect(shape) for shape in shapes)
        except LuthierError:
            found = {}
        if len(found) != 1:
            raise
        return next(iter(found.items()))


def _has_columns(cls: Any, name: str, table: RowTable) -> None:
    for alternatives in cls.columns:
        if not set(alternatives) & set(table.columns):
            raise LuthierError(
                f"data: type {name} needs the column {' or '.join(alternatives)}; {', '.join(table.sources)} has "
                f"{', '.join(table.columns)}: map it with columns: {{{alternatives[0]}: ...}}"
            )


def _build(cls: Any, name: str, options: Mapping[str, Any]) -> DataSource:
    known = {f.name for f in fields(cls)}
    for key in options:
        if key not in known:
            homes = [n for n, c in row_types().items() if key in {f.name for f in fields(c)}]  # type: ignore[arg-type]
            also = f" (an option of {', '.join(homes)})" if homes else ""
            raise LuthierError(f"data: {nearest(f'option of {name}', key, sorted(known))}{also}")
    try:
        built = TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        raise LuthierError(f"data: {first['loc'][0]}: {first['msg']}, not {first['input']!r}") from None
    for key in ("max_length", "max_target_length", "query_length"):
        value = getattr(built, key, None)
        if value is not None and value < 1:
            raise LuthierError(f"data: {key} must be at least 1, or null for no limit; it is {value}")
    return built


def _templated() -> Any:
    from luthier.data._family import Conversational

    return Conversational


def _template_words(text: str | None, tokenizer: Any) -> str:
    if text is None:
        return "none"
    home = "the tokenizer's" if text == getattr(tokenizer, "chat_template", None) else "chat_template_path"
    return f"{home} (sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _plain(method: DataSource) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in fields(method)}  # type: ignore[arg-type]


def _plain_texts(row: Mapping[str, Any]) -> bool:
    answers = [row[k] for k in ("messages", "prompt", "completion", "chosen", "rejected") if row.get(k) is not None]
    return all(isinstance(a, str) for a in answers)


# Encoding


def _built(
    method: DataSource, table: RowTable, tokenizer: Any, report: Report, keep: Sequence[str] = ()
) -> tuple[list[Example], _cache.Arrays]:
    for column in keep:
        if column not in table.columns:
            raise LuthierError(f"data: {nearest('column', column, table.columns)}")
    examples: list[Example] = []
    marks: Counter[str] = Counter()
    divided = any(row.get(OBJECTIVE) is not None for row in table.rows)
    for start in range(0, len(table), _CHUNK):
        rows = table.rows[start : start + _CHUNK]
        indices = range(start, start + len(rows))
        for i, result in zip(indices, method.encode_rows(rows, indices, tokenizer)):  # type: ignore[attr-defined]
            if isinstance(result, RowError):
                report.rejected.append(Rejected(table.origins[i], str(result)))
            else:
                if keep:
                    result.example.extras = {**result.example.extras, **{k: table.rows[i].get(k) for k in keep}}
                if divided:
                    result.example.extras[OBJECTIVE] = table.rows[i].get(OBJECTIVE)
                examples.append(result.example)
                marks.update(result.marks)
    report.truncated, report.answers_cut = marks.pop("cut", 0), marks.pop("answer cut", 0)
    report.marks = dict(sorted(marks.items()))
    report.examples = len(examples)
    arrays = _cache.to_arrays(examples)
    report.sha256 = _cache.digest(arrays)
    if examples:
        _measure(examples, report)
    return examples, arrays


def _measure(examples: Sequence[Example], report: Report) -> None:
    lengths = np.asarray([len(e) for e in examples])
    report.tokens = int(lengths.sum())
    report.trained_tokens = sum(trained(e) for e in examples)
    report.lengths = {
        "min": int(lengths.min()), "mean": round(float(lengths.mean()), 1), "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)), "max": int(lengths.max()),
    }  # fmt: skip
    width = -(-(int(np.ptp(lengths)) + 1) // 8)
    edges = np.arange(lengths.min(), lengths.max() + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    report.histogram = [(int(a), int(a) + width - 1, int(n)) for a, n in zip(edges, counts)]
    if isinstance(examples[0], LabelledExample | TaggedExample) and report.label_names:
        report.label_counts = _label_counts(examples, report.label_names)


def trained(example: Example) -> int:
    """Trained tokens of an example."""
    if isinstance(example, TextExample):
        return sum(example.counts)
    if isinstance(example, GroupExample):
        return sum(map(len, example.answers)) - sum(example.given or ())
    if isinstance(example, TaggedExample):
        return len(example.tagged)
    return len(example.target) if isinstance(example, SourceTargetExample) else 0


def _label_counts(examples: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    counts = dict.fromkeys(names, 0)
    for e in examples:
        if isinstance(e, TaggedExample):
            on = [e.tags[t] for t in e.tagged]
        else:
            on = [i for i, v in enumerate(e.label) if v] if isinstance(e.label, list) else [int(e.label)]
        for i in on:
            counts[names[i]] += 1
    return counts


# The cache

_STORED = (
    "examples", "truncated", "answers_cut", "marks", "tokens", "trained_tokens", "lengths", "histogram",
    "label_counts", "sha256",
)  # fmt: skip


def _cache_path(
    folder: Any, table: RowTable, method: DataSource, template: str | None, tokenizer: Any, keep: Sequence[str] = ()
) -> Path | None:
    if folder is None:
        return None
    rows, options = [table.sha256, table.origins], _plain(method)
    key = _cache.key_of([DATA_VERSION, rows, method.name, options, template, fingerprint(tokenizer), *keep])
    return Path(folder) / f"{key}.safetensors"


def fingerprint(tokenizer: Any) -> str:
    """Hash of all that a tokenizer's output depends on."""
    state = hashlib.sha256(f"{tokenizer.__class__.__name__} {sorted(tokenizer.special_tokens_map.items())}".encode())
    if tokenizer.is_fast:
        state.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        state.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return state.hexdigest()


def _header(report: Report, examples: Sequence[Example], before: int) -> dict[str, Any]:
    extras = [e.extras for e in examples]
    return {
        "kind": examples[0].__class__.__name__,
        "extras": extras if any(extras) else None,
        "rejected": [list(r) for r in report.rejected[before:]],
    } | {name: getattr(report, name) for name in _STORED}


def _reused(held: tuple[_cache.Arrays, dict[str, Any]], report: Report) -> tuple[list[Example], _cache.Arrays]:
    arrays, header = held
    for name in _STORED:
        setattr(report, name, header[name])
    report.histogram = [tuple(h) for h in report.histogram]  # type: ignore[misc]
    report.rejected += [Rejected(*r) for r in header["rejected"]]
    return _cache.from_arrays(arrays, header["kind"], header["extras"]), arrays
