"""The catalogue: a method's name is its file's name, the folder is the list.

Listing reads files, not modules (core/sources.py): header, class and literal class attributes come from the syntax tree,
so that `luthier list` needs no torch. `load` imports one module and takes its single public method class. Status is derived
from recorded checks (results/checks.json) and measured results (results/<axis>/<name>.json), and falls back to draft as
soon as the source that was checked has changed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from luthier.core.sources import PACKAGE, Sources

AXES = ("data", "tuners", "objectives", "recipes", "decoding", "edits", "evaluation", "analysis")
STATUSES = ("none", "draft", "checked", "agreed", "contradicted", "reproduced")


class UnknownMethod(ValueError):
    """A name that no file has."""


def _resource(name: str) -> Path:
    """`configs` or `results`: beside the package in a checkout, inside it when installed."""
    beside = PACKAGE.parent / name
    return beside if beside.is_dir() and (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / f"_{name}"


def results_folder() -> Path:
    return _resource("results")


def configs_folder() -> Path:
    return _resource("configs")


def plugin_folders() -> list[Path]:
    """Folders from LUTHIER_PLUGINS (separated as in PATH), each laid out as <axis>/<name>.py."""
    return [Path(p) for p in os.environ.get("LUTHIER_PLUGINS", "").split(os.pathsep) if p]


@dataclass(frozen=True)
class Entry:
    """One method as its file tells it."""

    axis: str
    name: str
    path: Path
    title: str
    header: str
    class_name: str
    paper: str = ""
    cards: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    known_failures: dict[str, str] = field(default_factory=dict)

    @property
    def plugin(self) -> bool:
        return PACKAGE not in self.path.parents

    @property
    def module(self) -> str:
        return f"luthier_plugins.{self.axis}.{self.name}" if self.plugin else f"luthier.{self.axis}.{self.name}"

    @property
    def config(self) -> Path | None:
        home = self.path.parents[1] / "configs" if self.plugin else configs_folder()
        at = home / self.axis / f"{self.name}.yaml"
        return at if at.exists() else None


def _files(axis: str) -> list[Path]:
    folders = [PACKAGE / axis, *(p / axis for p in plugin_folders())]
    return [
        f for folder in folders if folder.is_dir() for f in sorted(folder.glob("*.py")) if not f.name.startswith("_")
    ]


@cache
def _sources() -> Sources:
    return Sources()


def _reached(path: Path) -> list[Path]:
    """The family files that a file imports, directly or through others of them."""
    found: dict[str, None] = {}
    ahead = list(_sources()[path]["family"])
    while ahead:
        file = ahead.pop(0)
        if file not in found and file != str(path):
            found[file] = None
            ahead += _sources()[Path(file)]["family"]
    return [Path(f) for f in found]


def _inherited(name: str, classes: dict[str, Any]) -> dict[str, Any]:
    """What a class and those of its bases that are in `classes` tell."""
    if name not in classes:
        return {}
    out: dict[str, Any] = {}
    for base in classes[name]["bases"]:
        out |= _inherited(base, classes) if base != name else {}
    return out | classes[name]["told"]


def read(axis: str, path: Path) -> Entry:
    """The entry of one file. Raises ValueError if it does not hold exactly one method class and a header."""
    facts = _sources()[path]
    classes, header = facts["classes"], facts["header"]
    # a method class declares a paper; helper classes of the same file do not
    methods = [n for n, c in classes.items() if not n.startswith("_") and "paper" in c["told"]]
    if len(methods) != 1 or not header:
        raise ValueError(
            f"{path}: one public class with a `paper` and a module docstring is needed, found {len(methods)}"
        )
    family = [_sources()[f]["classes"] for f in _reached(path)]
    told = _inherited(methods[0], {n: c for some in [*reversed(family), classes] for n, c in some.items()})
    return Entry(
        axis=axis,
        name=path.stem,
        path=path,
        title=header.split("\n", 1)[0].strip(),
        header=header,
        class_name=methods[0],
        paper=told.get("paper", ""),
        cards=tuple(told.get("cards", ())),
        capabilities=tuple(sorted(told.get("capabilities", ()))),
        known_failures=told.get("known_failures", {}),
    )


def entries(axis: str | None = None) -> list[Entry]:
    """All methods, of one axis or of all, by name."""
    if axis is not None and axis not in AXES:
        raise UnknownMethod(_unknown("axis", axis, AXES))
    found = [read(a, f) for a in ([axis] if axis else AXES) for f in _files(a)]
    _sources().keep()
    return found


def _unknown(what: str, name: str, valid: Any) -> str:
    near = difflib.get_close_matches(name, list(valid), 1, 0.5)
    return f"unknown {what} '{name}'" + (
        f": did you mean '{near[0]}'?" if near else f": one of {', '.join(sorted(valid))}"
    )


def entry(axis: str, name: str) -> Entry:
    """One method by axis and name. Raises UnknownMethod with the nearest name."""
    for file in _files(axis):
        if file.stem == name:
            return read(axis, file)
    raise UnknownMethod(_unknown(axis.rstrip("s"), name, [f.stem for f in _files(axis)]))


def find(name: str) -> Entry:
    """One method by name alone or as axis/name. Raises UnknownMethod if none or several have it."""
    if "/" in name:
        return entry(*name.split("/", 1))
    found = [read(a, f) for a in AXES for f in _files(a) if f.stem == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownMethod(f"'{name}' is on several axes: say {' or '.join(f'{e.axis}/{e.name}' for e in found)}")
    raise UnknownMethod(_unknown("method", name, {f.stem for a in AXES for f in _files(a)}))


def load(axis: str, name: str) -> type[Any]:
    """The method's class; imports its module only."""
    one = entry(axis, name)
    return getattr(_module(one), one.class_name)


def _module(one: Entry) -> ModuleType:
    if not one.plugin:
        return importlib.import_module(one.module)
    if one.module in sys.modules:
        return sys.modules[one.module]
    spec = importlib.util.spec_from_file_location(one.module, one.path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[one.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[one.module]
        raise
    return module


def import_axis(axis: str) -> None:
    """Import every method of an axis that is not imported (or being imported) already."""
    for file in _files(axis):
        one = read(axis, file)
        if one.module not in sys.modules:
            _module(one)


# -------------------------------------------------------------------------------------------------- status


def source_hash(one: Entry) -> str:
    """Hash of what a recorded check vouches for: the method's file, the checks of its axis, and the family files of an
    axis that either imports.

    The core is left out: the test suite runs every check against it on each change.
    """
    checks = PACKAGE / "checks" / f"{one.axis}.py"
    told = [one.path, *([checks] if checks.exists() else [])]
    family = {f for file in told for f in _reached(file) if f.parent.name in AXES}
    digest = hashlib.sha256()
    for file in [*told, *sorted(family)]:
        digest.update(_sources()[file]["digest"].encode())
    return digest.hexdigest()[:16]


@cache
def _recorded(stamp: int) -> dict[str, Any]:
    file = results_folder() / "checks.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _last_record(one: Entry) -> dict[str, Any] | None:
    file = results_folder() / "checks.json"
    return _recorded(file.stat().st_mtime_ns if file.exists() else 0).get(f"{one.axis}/{one.name}")


def checks_record(one: Entry) -> dict[str, Any] | None:
    """The recorded run of the common checks for this very source, or None."""
    record = _last_record(one)
    return record if record and record["source"] == source_hash(one) else None


def result_file(one: Entry) -> Path:
    return results_folder() / one.axis / f"{one.name}.json"


def status(one: Entry) -> dict[str, Any]:
    """{"status", "checks_run", "checks_expected", "oracles"} derived from the records.

    Of a source that changed since its checks were recorded no check counts, out of as many as there were then.
    """
    record, last = checks_record(one), _last_record(one)
    run = len(record["passed"]) if record else 0
    expected = last["expected"] if last else 0
    oracles = record.get("oracles", []) if record else []
    out = {"status": "draft", "checks_run": run, "checks_expected": expected, "oracles": oracles}
    if one.known_failures or record is None or run < expected or record.get("failed"):
        return out
    out["status"] = "checked"
    if not oracles:
        return out
    out["status"] = "agreed"
    measured = result_file(one)
    if measured.exists():
        verdict = json.loads(measured.read_text()).get("verdict")
        if verdict in ("reproduced", "contradicted"):
            out["status"] = verdict
    return out


def listing(axis: str | None = None) -> list[dict[str, Any]]:
    """What `luthier list --json` prints."""
    rows = [
        {
            "axis": e.axis,
            "name": e.name,
            "cards": list(e.cards),
            "paper": e.paper,
            "title": e.title,
            "capabilities": list(e.capabilities),
            **{k: v for k, v in status(e).items() if k != "oracles"},
        }
        for e in entries(axis)
    ]
    _sources().keep()
    return rows


def cards() -> list[dict[str, Any]]:
    """What `luthier list --cards --json` prints: every card, its parts and the lowest status among them.

    A card whose system also needs parts that no file has yet is a draft, whatever the parts that exist are.
    """
    titles = json.loads((PACKAGE / "cards.json").read_text())
    rows = {(r["axis"], r["name"]): r for r in listing()}
    out = []
    for number, told in sorted(titles.items(), key=lambda kv: int(kv[0])):
        parts = [r for r in rows.values() if int(number) in r["cards"]]
        missing = sorted(n for n in told.get("needs", []) if tuple(n.split("/")) not in rows)
        states = [r["status"] for r in parts] + (["draft"] if missing else [])
        lowest = min(states, key=STATUSES.index) if parts else "none"
        out.append(
            {
                "card": int(number),
                "title": told["title"],
                "parts": sorted(f"{r['axis']}/{r['name']}" for r in parts),
                "missing": missing,
                "status": lowest,
            }
        )
    return out
