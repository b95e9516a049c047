"""Which type rows have, by the names of their columns; where these do not settle it, an error and never a guess.

Every file of this folder whose class says `detected = True` is a type; what it needs is its own `columns`. A type is
found when all that it needs is there. Where one type reads everything that another needs and more (prompt, completion,
label against prompt, completion), the one that reads more is meant. Anything else that leaves two is ambiguous.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Sequence
from functools import cache

import luthier.data
from luthier.core.method import DataSource, LuthierError
from luthier.data._words import nearest

# Rows that the field knows and no method here takes: name -> (what they need, what to do about it).
_UNTAKEN: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {
    "image, audio or video": ((("images", "image", "audio", "audios", "videos", "video"),), "drop that column"),
}


@cache
def row_types() -> dict[str, type[DataSource]]:
    """Type name -> class, from the files of this folder."""
    found = {}
    for module in pkgutil.iter_modules(luthier.data.__path__):
        if module.name.startswith("_"):
            continue
        cls = _public_class(module.name)
        if getattr(cls, "detected", False):
            found[module.name] = cls
    return found


def _public_class(name: str) -> type[DataSource]:
    module = importlib.import_module(f"luthier.data.{name}")
    classes = [
        v for k, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, DataSource) and v.__module__ == module.__name__ and k[0] != "_"
    ]  # fmt: skip
    if len(classes) != 1:
        raise LuthierError(f"{module.__file__}: a method file has one public class, this has {len(classes)}")
    return classes[0]


def named(name: str) -> type[DataSource]:
    """The class of a type by its name."""
    if name in _UNTAKEN:
        raise LuthierError(f"data: {_refusal(name)}")
    names = [m.name for m in pkgutil.iter_modules(luthier.data.__path__) if not m.name.startswith("_")]
    if name not in names:
        raise LuthierError(f"data: {nearest('type', name, names)}")
    return _public_class(name)


def detect(columns: Sequence[str]) -> tuple[str, str]:
    """(type, why) of rows with these columns."""
    have = set(columns)
    needs = {name: cls.columns for name, cls in row_types().items()} | {n: c for n, (c, _) in _UNTAKEN.items()}
    reads = {name: set(cls.optional) for name, cls in row_types().items()}  # type: ignore[attr-defined]
    matches = [(name, way) for name, entries in needs.items() for way in _ways(entries) if way <= have]

    def beaten(name: str, way: frozenset[str]) -> bool:
        return any(way < other | reads.get(n, set()) and not way >= other for n, other in matches if n != name)

    kept = [(name, way) for name, way in matches if not beaten(name, way)]
    if not kept:
        raise LuthierError(f"data: no row type has the columns {_list(columns)}; {_help()}")
    types = {name for name, _ in kept}
    if len(kept) > 1 and not (len(types) == 1 and row_types()[kept[0][0]].chosen_by_option):  # type: ignore[attr-defined]
        found = "; ".join(f"{name} ({_list(sorted(way))})" for name, way in kept)
        raise LuthierError(f"data: the columns {_list(columns)} fit more than one row type: {found}; say which: {_SAY}")
    name, way = kept[0]
    if name in _UNTAKEN:
        raise LuthierError(f"data: columns {_list(c for c in columns if c in way)}: {_refusal(name)}")
    others = sorted({other for other, _ in matches if other != name})
    over = f" (which is more than {_list(others)})" if others else ""
    return name, f"columns {_list(c for c in columns if c in way)}{over}"


_SAY = "data: {type: ..., columns: {name here: name in the file}}"


def _ways(entries: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    """All smallest sets of columns that hold one alternative of each entry."""
    sets = {frozenset(choice) for choice in itertools.product(*entries)} if entries else set()
    return sorted((s for s in sets if not any(other < s for other in sets)), key=sorted)


def _refusal(name: str) -> str:
    hint = _UNTAKEN[name][1]
    return f"{name} rows: no method of this version takes them" + (f" ({hint})" if hint else "")


def _help() -> str:
    ways = {n: " | ".join(" + ".join(sorted(w)) for w in _ways(c.columns)) for n, c in row_types().items()}
    types = "; ".join(f"{n} needs {way}" for n, way in ways.items())
    return f"{types}. Say it: {_SAY}, or make columns with `template`"


def _list(names: object) -> str:
    return ", ".join(map(str, names)) or "(none)"  # type: ignore[call-overload]
