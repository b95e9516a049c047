"""Sources to rows: every row with its origin, every row that cannot be used with its reason.

    path.jsonl .json .csv .tsv .parquet .arrow .txt     one file (text formats also with .gz)
    folder                                              `datasets.save_to_disk`, LLaMA-Factory, or one file a split
    org/name                                            a data set of the hub, `?name=main` for a configuration
    sandbox:WORLD?task=..&part=..&n=..                  rows of a sandbox world
    source:split    source#N                            one split; N rows drawn with the seed, in their order

A list of sources is concatenated; an entry of the list may be a mapping with its own keys.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from luthier.core.method import LuthierError, RowError
from luthier.data import _legacy
from luthier.data._words import nearest

Row = dict[str, Any]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
SOURCE_KEYS = ("path", "split", "columns", "template", "n", "seed")


class Rejected(NamedTuple):
    """A row that cannot be used: where it is and why."""

    origin: str
    reason: str


class _Bad(NamedTuple):
    """What a file reader yields in place of a row."""

    reason: str


@dataclass
class RowTable:
    """Rows with their origins.

    rows        one mapping a row
    origins     "file:line", "file[index]" or "world[index]" of each row
    rejected    rows found but not usable
    found       rows found in the sources: kept + rejected + left out by sampling or limit
    converted   source -> legacy format that its rows were converted from
    defined     columns that a mapping, a template or a conversion made; empty: the columns are the source's own
    names       column -> class names, where the source stores them
    notes       what a reader should know
    """

    rows: list[Row]
    origins: list[str]
    rejected: list[Rejected] = field(default_factory=list)
    found: int = 0
    sources: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    defined: tuple[str, ...] = ()
    names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def left_out(self) -> int:
        return self.found - len(self.rows) - len(self.rejected)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in the order in which they first appear."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    @cached_property
    def sha256(self) -> str:
        """Hash of the rows as canonical JSON: the same rows from another file or format have the same hash."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, separators=(",", ":"), default=repr).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def take(self, indices: Sequence[int], rejected: bool = False) -> RowTable:
        """A part of the rows. The rejected rows go along only where asked for, so that parts add up."""
        dropped = list(self.rejected) if rejected else []
        return replace(
            self,
            rows=[self.rows[i] for i in indices],
            origins=[self.origins[i] for i in indices],
            rejected=dropped,
            found=len(indices) + len(dropped) + (self.left_out if rejected else 0),
        )


def read(
    source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any],
    *,
    split: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    template: str | Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    shuffle: int | None = None,
) -> RowTable:
    """Rows of one source or of several, legacy formats converted.

    columns   new name -> the source's name (dotted for nested fields; a number for csv without a header line)
    template  Jinja text that makes `text`, or column -> Jinja text
    shuffle   seed of a new order of all rows; its first rows are a random subset, and those of any limits are nested
    limit     the first `limit` rows only
    strict    stop at the first row that cannot be used
    """
    if isinstance(source, Mapping):
        table = _read_entry(source, split, columns, template, seed)
    elif isinstance(source, (str, os.PathLike)):
        table = _read_one(os.fspath(source), split, columns, template, seed)
    elif source:
        table = _concatenate([read(s, split=split, columns=columns, template=template, seed=seed) for s in source])
    else:
        raise LuthierError("data: the list of sources is empty")
    if strict and table.rejected:
        first = table.rejected[0]
        raise LuthierError(f"{first.origin}: {first.reason} (strict: true stops here; strict: false reports and skips)")
    if shuffle is not None:
        order = random.Random(shuffle).sample(range(len(table)), len(table))
        table = replace(table, rows=[table.rows[i] for i in order], origins=[table.origins[i] for i in order])
    if limit is not None and limit < len(table):
        table = replace(table, rows=table.rows[:limit], origins=table.origins[:limit])
    return table


def _read_entry(entry: Mapping[str, Any], split: Any, columns: Any, template: Any, seed: int) -> RowTable:
    for key in entry:
        if key not in SOURCE_KEYS:
            raise LuthierError(f"data: {nearest('key of a source', str(key), SOURCE_KEYS)}")
    if "path" not in entry:
        raise LuthierError(f"data: a source needs `path`; this one has {', '.join(map(str, entry)) or 'nothing'}")
    name = str(entry["path"]) + (f"#{entry['n']}" if "n" in entry else "")
    return _read_one(
        name,
        entry.get("split", split),
        entry.get("columns", columns),
        entry.get("template", template),
        entry.get("seed", seed),
    )


def _concatenate(tables: Sequence[RowTable]) -> RowTable:
    joined = RowTable([], [])
    for t in tables:
        joined.rows += t.rows
        joined.origins += t.origins
        joined.rejected += t.rejected
        joined.found += t.found
        joined.sources += t.sources
        joined.converted |= t.converted
        joined.notes += t.notes
        for column, names in t.names.items():
            if joined.names.setdefault(column, names) != names:
                raise LuthierError(
                    f"{t.sources[0]}: column '{column}' has other class names than in the sources before"
                )
    if all(t.defined for t in tables):
        joined.defined = tuple(dict.fromkeys(c for t in tables for c in t.defined))
    return joined


def _read_one(source: str, split: str | None, columns: Any, template: Any, seed: int) -> RowTable:
    """One source: read, sample, rename, render, convert, in this order."""
    place, named_split, n = _parse(expand(source))
    raw = _open(place, split or named_split, _headerless(columns))
    table = RowTable([], [], sources=[source], names=raw.names, notes=raw.notes)
    for origin, item in raw.items:
        table.found += 1
        if isinstance(item, _Bad):
            table.rejected.append(Rejected(origin, item.reason))
        else:
            table.rows.append(item)
            table.origins.append(origin)
    n = raw.n if n is None else n
    if n is not None:
        _sample(table, n, seed)
    if columns:
        _rename(table, columns)
    if template:
        _render(table, template)
    style = raw.style or _legacy.recognise(table.columns)
    if style is not None:
        made = _each(table, style.convert)
        table.converted[source] = style.name
        table.defined = tuple(dict.fromkeys((*table.defined, *made))) if made else table.defined
    return table


def _each(table: RowTable, change: Callable[[Row], Row]) -> tuple[str, ...]:
    """Replace every row by `change(row)`, reject those that it refuses, and return the names of new columns."""
    rows, origins, made = [], [], {}
    for row, origin in zip(table.rows, table.origins):
        try:
            new = change(row)
        except RowError as error:
            table.rejected.append(Rejected(origin, str(error)))
            continue
        made.update(dict.fromkeys(k for k in new if k not in row))
        rows.append(new)
        origins.append(origin)
    table.rows, table.origins = rows, origins
    return tuple(made)


def expand(text: str) -> str:
    """`${VAR}` and `~` in a path. A variable that is not set is an error, not an empty string."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise LuthierError(f"data: '{text}' needs the environment variable {name}, which is not set")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))


def _parse(source: str) -> tuple[str, str | None, int | None]:
    """`place`, `place:split`, `place#N`, both in either order. A place that exists under its full name is not cut."""
    if os.path.exists(source):
        return source, None, None
    split, n, place = None, None, source
    for _ in range(2):
        if n is None and (m := re.fullmatch(r"(.+)#(\d+)", place)):
            place, n = m.group(1), int(m.group(2))
        elif split is None and (m := re.fullmatch(r"(.+):([A-Za-z_][\w.\-]*)", place)) and m.group(1) != "sandbox":
            place, split = m.group(1), m.group(2)
    return place, split, n


def _sample(table: RowTable, n: int, seed: int) -> None:
    if n >= len(table):
        if n > len(table):
            table.notes.append(f"{table.sources[0]}: {n} rows were asked for, all {len(table)} are used")
        return
    kept = sorted(random.Random(seed).sample(range(len(table)), n))
    table.rows = [table.rows[i] for i in kept]
    table.origins = [table.origins[i] for i in kept]


# Columns and templates


def _headerless(columns: Any) -> bool:
    return bool(columns) and any(isinstance(v, int) for v in columns.values())


def dig(row: Row, path: str) -> Any:
    """`row[path]`, or a nested field by a dotted path. KeyError where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def _rename(table: RowTable, columns: Mapping[str, str | int]) -> None:
    wanted = {new: str(old) for new, old in columns.items()}
    present = table.columns
    for new, old in wanted.items():
        if table.rows and old.split(".")[0] not in present and old not in present:
            hint = f"; '{new}' is one: `columns` reads {{new name: name in the file}}" if new in present else ""
            raise LuthierError(f"{table.sources[0]}: {nearest('column', old, present)}{hint}")

    def change(row: Row) -> Row:
        new_row = {k: v for k, v in row.items() if k not in wanted.values() or k in wanted}
        for new, old in wanted.items():
            try:
                new_row[new] = dig(row, old)
            except KeyError:
                raise RowError(f"no column '{old}' (columns: {{{new}: {old}}})") from None
        return new_row

    _each(table, change)
    table.defined = tuple(wanted)


def _render(table: RowTable, template: str | Mapping[str, str]) -> None:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    texts = {"text": template} if isinstance(template, str) else dict(template)
    try:
        compiled = {name: environment.from_string(text) for name, text in texts.items()}
    except jinja2.TemplateSyntaxError as error:
        raise LuthierError(f"data: template, line {error.lineno}: {error.message}") from None

    def change(row: Row) -> Row:
        try:
            return row | {name: t.render(**{str(k): v for k, v in row.items()}) for name, t in compiled.items()}
        except jinja2.UndefinedError as error:
            raise RowError(f"template: {error.message}; the row has {', '.join(row)}") from None
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RowError(f"template: {error}") from None

    _each(table, change)
    table.defined = tuple(texts)


# Places


@dataclass
class _Raw:
    """What a place holds: (origin, row or _Bad) pairs, and what the place says about them."""

    items: Iterable[tuple[str, Row | _Bad]]
    names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    style: _legacy.Style | None = None
    n: int | None = None


def _open(place: str, split: str | None, headerless: bool) -> _Raw:
    if place.startswith("sandbox:"):
        return _sandbox(place, split)
    if os.path.isdir(place):
        return _folder(place, split, headerless)
    if os.path.isfile(place):
        if os.path.basename(place) == _legacy.REGISTRY:
            return _registered(Path(place), split)
        return _file(place, split, headerless)
    name = place.partition("?")[0]
    if _suffix(place) or place.startswith((".", "/")) or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name):
        raise LuthierError(f"data: no such file: {place}")
    return _hub(place, split)


def _suffix(path: str) -> str:
    """The format of a path by its name, without .gz; empty when it is none that we read."""
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in FORMATS else ""


def _file(path: str, split: str | None, headerless: bool) -> _Raw:
    suffix = _suffix(path)
    if not suffix:
        raise LuthierError(f"{path}: not a format that is read here: {' '.join(FORMATS)} (text formats also with .gz)")
    if suffix == ".json":
        return _json(path, split)
    if split is not None:
        raise LuthierError(f"{path}: a {suffix} file has no splits; leave out ':{split}'")
    if suffix == ".jsonl":
        return _Raw(_json_lines(path))
    if suffix == ".txt":
        return _Raw((origin, text if isinstance(text, _Bad) else {"text": text}) for origin, text in _lines(path))
    if suffix in (".csv", ".tsv"):
        return _Raw(list(_table_lines(path, suffix, headerless)))
    return _arrow(path, suffix)


def _stream(path: str) -> Any:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _lines(path: str) -> Iterator[tuple[str, str | _Bad]]:
    """Lines that are not blank, decoded one by one: a line that is not UTF-8 spoils only itself."""
    with _stream(path) as stream:
        for number, line in enumerate(stream, 1):
            origin = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield origin, _Bad(f"not UTF-8 (byte {error.start + 1} of the line)")
                continue
            if text.strip():
                yield origin, text


def _json_lines(path: str) -> Iterator[tuple[str, Row | _Bad]]:
    for origin, line in _lines(path):
        if isinstance(line, _Bad):
            yield origin, line
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield origin, _Bad(f"not JSON: {getattr(error, 'msg', 'nested too deeply')}{at}")
            continue
        yield origin, _as_row(value)


def _as_row(value: Any) -> Row | _Bad:
    if not isinstance(value, dict):
        return _Bad(f"a row must be an object {{...}}, this is {_kind(value)}")
    return value if value else _Bad("the row is empty")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _json(path: str, split: str | None) -> _Raw:
    with _stream(path) as stream:
        data = stream.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise LuthierError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and data.lstrip()[:1] == b"{":
            return _Raw(_json_lines(path), notes=[f"{path}: read as one JSON object a line (.jsonl)"])
        raise LuthierError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    if isinstance(value, dict):
        value = _member(path, value, split)
    elif split is not None:
        raise LuthierError(f"{path}: holds one list and no splits; leave out ':{split}'")
    if not isinstance(value, list):
        raise LuthierError(f"{path}: expected a list of rows, found {_kind(value)}")
    return _Raw((f"{path}[{i}]", _as_row(v)) for i, v in enumerate(value))


def _member(path: str, value: dict[str, Any], split: str | None) -> Any:
    """The list inside an object: the split asked for, or its only list of objects."""
    lists = [k for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if split is not None:
        if split not in value:
            raise LuthierError(f"{path}: {nearest('split', split, lists)}")
        return value[split]
    if len(lists) == 1:
        return value[lists[0]]
    raise LuthierError(
        f"{path}: expected a list of rows, found an object with {', '.join(value)}"
        + (f"; choose one with '{path}:{lists[0]}'" if lists else "")
    )


def _table_lines(path: str, suffix: str, headerless: bool) -> Iterator[tuple[str, Row | _Bad]]:
    """csv with quotes; tsv without: a tab-separated file has no quoting, and film reviews are full of stray quotes."""
    quoting: Any = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    csv.field_size_limit(2**31 - 1)
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if suffix == ".tsv" else ",", quoting=quoting, strict=True)
        header: list[str] | None = None
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"{path}:{start}", _Bad(f"not {suffix[1:]}: {error}")
                continue
            if not any(cells):
                continue
            if header is None:
                header = [str(i) for i in range(len(cells))] if headerless else _header(path, start, cells)
                if not headerless:
                    continue
            yield f"{path}:{start}", _cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> Row | _Bad:
    if len(cells) != len(header):
        return _Bad(f"{len(cells)} fields, the header has {len(header)}")
    if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
        return _Bad("not UTF-8")
    return dict(zip(header, cells))


def _header(path: str, line: int, cells: list[str]) -> list[str]:
    """The first line, if it can be one: names are filled in, different, short and not numbers."""
    reason = ""
    if not cells[0].strip() and any(cells[1:]):
        cells = ["Unnamed: 0", *cells[1:]]  # the row numbers that pandas writes, by the name that it reads them with
    if len(set(cells)) < len(cells):
        reason = "a name occurs twice"
    for cell in cells:
        if not cell.strip():
            reason = "a name is empty"
        elif re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell.strip()):
            reason = f"'{cell}' is a number"
        elif len(cell) > 60:
            reason = f"'{cell[:30]}...' is too long for a name"
    if reason:
        raise LuthierError(
            f"{path}:{line}: the first line is not a header ({reason}); add one, or number the columns: "
            "data: {columns: {text: 0, label: 1}}"
        )
    return [c.strip() for c in cells]


def _arrow(path: str, suffix: str) -> _Raw:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            with pyarrow.memory_map(path) as source:
                try:
                    table = ipc.open_stream(source).read_all()  # what `datasets` writes
                except pyarrow.ArrowInvalid:
                    source.seek(0)
                    table = ipc.open_file(source).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise LuthierError(f"{path}: not a readable {suffix} file: {str(error).splitlines()[0]}") from None
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features") or {}
    names = {k: list(found) for k, v in features.items() if (found := _class_names(v))}
    return _Raw(((f"{path}[{i}]", _as_row(r)) for i, r in enumerate(table.to_pylist())), names)


def _class_names(feature: Any) -> Sequence[str] | None:
    """Class names of a column of labels or of lists of labels, described by `datasets` as an object or as JSON."""
    while feature is not None:
        if isinstance(feature, list):
            feature = feature[0] if feature else None
            continue
        get = feature.get if isinstance(feature, Mapping) else lambda key, of=feature: getattr(of, key, None)
        if get("names"):
            return get("names")
        feature = get("feature")
    return None


def _folder(place: str, split: str | None, headerless: bool) -> _Raw:
    folder = Path(place)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        import datasets

        return _hugging(datasets.load_from_disk(place), place, split)
    if (folder / _legacy.REGISTRY).exists():
        return _registered(folder / _legacy.REGISTRY, split)
    files = sorted(p for p in folder.iterdir() if p.is_file() and _suffix(p.name))
    stems = list(dict.fromkeys(re.split(r"[.\-]", p.name)[0] for p in files))
    if split is None and len(stems) == 1:
        split = stems[0]
    if split is None:
        choice = f"choose one of {', '.join(stems)} with '{place}:{stems[0]}'"
        found = choice if stems else "it holds no data file"
        raise LuthierError(f"{place}: not a folder of `datasets.save_to_disk`; {found}")
    chosen = [p for p in files if re.split(r"[.\-]", p.name)[0] == split]
    if not chosen:
        raise LuthierError(f"{place}: {nearest('split', split, stems)}")
    parts = [_file(str(p), None, headerless) for p in chosen]
    names = {k: v for part in parts for k, v in part.names.items()}
    return _Raw((item for part in parts for item in part.items), names)


def _hugging(data: Any, place: str, split: str | None) -> _Raw:
    """A `Dataset`, or one split of a `DatasetDict`."""
    notes = []
    if isinstance(data, Mapping):
        splits = [str(k) for k in data]
        if split is None and len(splits) > 1 and "train" in splits:
            notes.append(f"{place}: split 'train' is used; it also has {', '.join(s for s in splits if s != 'train')}")
        chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
        if chosen is None:
            raise LuthierError(f"{place}: has the splits {', '.join(splits)}; choose one with '{place}:{splits[0]}'")
        if chosen not in splits:
            raise LuthierError(f"{place}: {nearest('split', chosen, splits)}")
        data = data[chosen]
    names = {k: list(found) for k, f in data.features.items() if (found := _class_names(f))}
    return _Raw(((f"{place}[{i}]", _as_row(dict(r))) for i, r in enumerate(data)), names, notes)


def _hub(place: str, split: str | None) -> _Raw:
    """A data set of the hub. `?name=..&revision=..&split=..` go to `datasets.load_dataset` as they are."""
    import datasets

    name, _, query = place.partition("?")
    options = _query(place, query, ("name", "revision", "split", "data_dir"))
    split = split or options.pop("split", None)
    if split and re.search(r"[\[%+]", split):  # slicing is the library's own language
        options["split"], split = split, None
    try:
        data = datasets.load_dataset(name, **options)
    except Exception as error:  # many libraries stand behind this call, and users need one line from all of them
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise LuthierError(
            f"data: '{name}' is no local path, and the hub did not give it ({type(error).__name__}: {line[:200]}); "
            "check the spelling, or the network and HF_HUB_OFFLINE"
        ) from error
    return _hugging(data, place, split)


def _sandbox(place: str, split: str | None) -> _Raw:
    from luthier import sandbox

    world, _, query = place.removeprefix("sandbox:").partition("?")
    options: dict[str, Any] = _query(place, query, ("task", "part", "split", "n", "seed"))
    for key in ("n", "seed"):
        if key in options:
            if not options[key].isdigit():
                raise LuthierError(f"{place}: {key} must be a whole number, not '{options[key]}'")
            options[key] = int(options[key])
    if split is not None:
        options["split"] = split
    try:
        rows = sandbox.rows(world, **options)
    except (ValueError, KeyError) as error:
        raise LuthierError(f"{place}: {error.args[0] if error.args else error}") from None
    return _Raw((f"sandbox:{world}[{i}]", _as_row(dict(r))) for i, r in enumerate(rows))


def _query(place: str, query: str, known: Sequence[str]) -> dict[str, Any]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in known:
            raise LuthierError(f"{place}: {nearest('option', key, known)}")
    return options


def _registered(registry: Path, name: str | None) -> _Raw:
    """One entry of a LLaMA-Factory `dataset_info.json`."""
    style, place, split, n = _legacy.entry(registry, name)
    raw = _open(place, split, False)
    raw.style, raw.n = style, n
    return raw
