"""Prepared examples on disk: one safetensors file for each key, written whole or not at all.

Ragged lists are stored flat with their ends. The header holds the report as JSON and the hash of the arrays: a file
that was cut short or changed does not fit its hash and is built again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.batch import (
    Example,
    GroupExample,
    LabelledExample,
    SearchExample,
    SourceTargetExample,
    TaggedExample,
    TextExample,
)

Arrays = dict[str, np.ndarray]
_KINDS = (TextExample, GroupExample, LabelledExample, TaggedExample, SourceTargetExample, SearchExample)
KINDS = {c.__name__: c for c in _KINDS}
NESTED = ("answers", "documents", "type_ids")
"""Fields that may hold several lists an example."""


def to_arrays(examples: Sequence[Example]) -> Arrays:
    """Columns of the examples as arrays: every field but `extras` (they are JSON, see `save`)."""
    out: Arrays = {"row": np.asarray([e.row for e in examples], dtype=np.int64)}
    if not examples:
        return out
    for name in (f.name for f in fields(examples[0]) if f.name not in ("row", "extras")):
        values = [getattr(e, name) for e in examples]
        if all(v is None for v in values):
            continue
        if name in NESTED and isinstance(next(iter(values[0]), None), list):
            out[f"{name}.of"] = np.cumsum([len(v) for v in values], dtype=np.int64)
            values = [a for v in values for a in v]
        if isinstance(values[0], list):
            out |= {f"{name}.flat": _flat(values), f"{name}.end": np.cumsum([len(v) for v in values], dtype=np.int64)}
        else:
            out[name] = np.asarray(values)
    return out


def _flat(lists: Sequence[Sequence[Any]]) -> np.ndarray:
    first = next((v[0] for v in lists if v), 0)
    kind: Any = {bool: np.bool_, float: np.float64}.get(type(first), np.int64)
    flat: np.ndarray = np.fromiter(itertools.chain.from_iterable(lists), dtype=kind, count=sum(map(len, lists)))
    small = kind is np.int64 and (not len(flat) or np.abs(flat).max() < 2**31)
    return flat.astype(np.int32) if small else flat


def from_arrays(arrays: Arrays, kind: str, extras: Sequence[dict[str, Any]] | None) -> list[Example]:
    """The examples again, equal to those that were stored."""
    columns: dict[str, list[Any]] = {"row": arrays["row"].tolist()}
    for name in arrays:
        if name.endswith(".flat"):
            columns[name.removesuffix(".flat")] = _ragged(arrays[name].tolist(), arrays[f"{name[:-5]}.end"].tolist())
        elif "." not in name:
            columns[name] = arrays[name].tolist()
    for name in NESTED:
        if f"{name}.of" in arrays:
            columns[name] = _ragged(columns[name], arrays[f"{name}.of"].tolist())
    if extras is not None:
        columns["extras"] = list(extras)
    names = list(columns)
    return [KINDS[kind](**dict(zip(names, values))) for values in zip(*columns.values())]  # type: ignore[misc]


def _ragged(flat: list[Any], ends: Sequence[int]) -> list[list[Any]]:
    return [flat[a:b] for a, b in zip([0, *ends[:-1]], ends)] if ends else []


def digest(arrays: Arrays) -> str:
    """sha256 over names, types, shapes and bytes."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {a.dtype.str} {a.shape}\n".encode())
        state.update(a.tobytes())
    return state.hexdigest()


def save(path: Path, arrays: Arrays, header: dict[str, Any]) -> None:
    """Write beside the target and move: readers see the old file, the new one, or none."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
    os.close(handle)
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, {"luthier": json.dumps(header)})
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def load(path: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """What `save` wrote, or None where there is nothing whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("luthier", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (FileNotFoundError, SafetensorError, json.JSONDecodeError):
        return None
    if header is None or header.get("sha256") != digest(arrays):
        return None
    return arrays, header


def key_of(parts: Iterable[Any]) -> str:
    """One key for everything that the prepared examples depend on."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True, default=repr).encode()).hexdigest()[:24]
