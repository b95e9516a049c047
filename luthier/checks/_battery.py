"""Which checks apply to a method, running them, and writing down what passed.

A check module `luthier.checks.<axis>` has functions `check_<name>(method, world)` and `worlds(method)`, the settings in
which a method is looked at (architectures, row types, ...). A check passes when it passes in every world it is meant
for. Nothing here knows a method by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from luthier.checks._compare import CheckFailed
from luthier.core import catalog
from luthier.core.method import LuthierError

Check = Callable[[Any, Any], None]


@dataclass
class Record:
    """What one method's battery told.

    source    hash of the code that was checked
    expected  number of checks that axis and capabilities imply
    passed    names;  failed  name: message;  known  name: reason, of failures that the method declares
    oracles   independent implementations that agree
    """

    source: str
    expected: int
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    oracles: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------ what applies


def when(applies: Callable[[Any], bool]) -> Callable[[Check], Check]:
    """The check is for methods of which `applies` is true; of all of them where it is said more than once."""

    def mark(check: Check) -> Check:
        check.applies = [*getattr(check, "applies", []), applies]  # type: ignore[attr-defined]
        return check

    return mark


def on(fits: Callable[[Any], bool]) -> Callable[[Check], Check]:
    """The check is for worlds of which `fits` is true; of all of them where it is said more than once."""

    def mark(check: Check) -> Check:
        check.fits = [*getattr(check, "fits", []), fits]  # type: ignore[attr-defined]
        return check

    return mark


def has_checks(axis: str) -> bool:
    return importlib.util.find_spec(f"luthier.checks.{axis}") is not None


@cache
def _module(axis: str) -> ModuleType:
    if not has_checks(axis):
        raise LuthierError(f"axis '{axis}' has no checks yet")
    return importlib.import_module(f"luthier.checks.{axis}")


def checks(axis: str) -> dict[str, Check]:
    """All checks of an axis by name, in the order of the file."""
    members = vars(_module(axis)).items()
    return {n.removeprefix("check_"): f for n, f in members if n.startswith("check_") and inspect.isfunction(f)}


def axis_of(method: Any) -> str:
    return type(method).__module__.split(".")[1]


def _worlds(method: Any, check: Check) -> list[Any]:
    fits = getattr(check, "fits", [])
    return [w for w in _module(axis_of(method)).worlds(method) if all(f(w) for f in fits)]


def expected(method: Any) -> list[str]:
    """Names of the checks that the method's axis, kinds and capabilities imply."""
    return [
        name
        for name, check in checks(axis_of(method)).items()
        if all(applies(method) for applies in getattr(check, "applies", [])) and _worlds(method, check)
    ]


def example(axis: str, name: str) -> Any:
    """The instance that the battery looks at."""
    return catalog.load(axis, name).example()


# ---------------------------------------------------------------------------------------------- running


def run_check(method: Any, name: str) -> None:
    """One check in all its worlds. Raises CheckFailed; the message begins with the world."""
    check = checks(axis_of(method))[name]
    for world in _worlds(method, check):
        try:
            with fixed_random_state():
                check(method, world)
        except CheckFailed as error:
            raise CheckFailed(f"[{_label(world)}] {error}") from None
        except Exception as error:
            raise CheckFailed(f"[{_label(world)}] {type(error).__name__}: {_one_line(error)}") from error


def _label(world: Any) -> str:
    return str(getattr(world, "label", world))


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:300]


@contextmanager
def fixed_random_state() -> Iterator[None]:
    """All generators seeded inside, as they were outside; warnings of the libraries kept quiet."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def known_failure(method: Any, name: str) -> str | None:
    """The reason why a check is known to fail, or None."""
    return type(method).known_failures.get(name)


def stale_known_failures(method: Any) -> list[str]:
    """Declared failures of checks that do not exist for the method."""
    return sorted(set(type(method).known_failures) - set(expected(method)))


def run_battery(axis: str, name: str) -> Record:
    """All checks and oracles of one method."""
    entry, method = catalog.entry(axis, name), example(axis, name)
    names = expected(method)
    record = Record(catalog.source_hash(entry), len(names))
    for check in names:
        reason, message = known_failure(method, check), None
        try:
            run_check(method, check)
        except CheckFailed as error:
            message = str(error)
        if message is None and reason is None:
            record.passed.append(check)
        elif message is None:
            record.failed[check] = f"listed as a known failure ({reason}), but it passes: remove it from the list"
        elif reason is not None:
            record.known[check] = reason
        else:
            record.failed[check] = message
    for check in stale_known_failures(method):
        record.failed[check] = "listed as a known failure, but there is no such check for this method"
    for source in oracles(axis, name):
        try:
            run_oracle(axis, name, source)
            record.oracles.append(source)
        except CheckFailed as error:
            record.failed[f"oracle_{source}"] = str(error)
    return record


# ---------------------------------------------------------------------------------------------- oracles


@cache
def oracle_module(axis: str, name: str) -> ModuleType | None:
    """`oracles/<axis>_<name>.py` here or in a plug-in folder, or None."""
    full = f"luthier.checks.oracles.{axis}_{name}"
    if importlib.util.find_spec(full) is not None:
        return importlib.import_module(full)
    for folder in catalog.plugin_folders():
        file = folder / "checks" / "oracles" / f"{axis}_{name}.py"
        if file.exists():
            spec = importlib.util.spec_from_file_location(f"luthier_plugins.checks.oracles.{axis}_{name}", file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def oracles(axis: str, name: str) -> list[str]:
    """Names of a method's oracles."""
    module = oracle_module(axis, name)
    return [n.removeprefix("oracle_") for n in vars(module) if n.startswith("oracle_")] if module else []


def run_oracle(axis: str, name: str, source: str) -> None:
    """One oracle. Raises CheckFailed."""
    try:
        with fixed_random_state():
            getattr(oracle_module(axis, name), f"oracle_{source}")()
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"{type(error).__name__}: {_one_line(error)}") from error


# ---------------------------------------------------------------------------------------- all, and recording


def pairs(axis: str | None = None, name: str | None = None) -> list[tuple[str, str]]:
    """(axis, name) of the methods to check: one, those of an axis, or all of axes that have checks."""
    if axis is not None and name is not None:
        return [(axis, catalog.entry(axis, name).name)]
    if name is not None:
        entry = catalog.find(name)
        return [(entry.axis, entry.name)]
    return [(e.axis, e.name) for e in catalog.entries(axis) if has_checks(e.axis)]


def run(
    axis: str | None = None,
    name: str | None = None,
    record: bool = False,
    told: Callable[[str, Record], None] | None = None,
) -> dict[str, Record]:
    """Records by "axis/name". `told` hears of each as it is done; with `record` they go to results/checks.json."""
    out: dict[str, Record] = {}
    for a, n in pairs(axis, name):
        out[f"{a}/{n}"] = run_battery(a, n)
        if told is not None:
            told(f"{a}/{n}", out[f"{a}/{n}"])
    if record:
        write_record(out, catalog.results_folder() / "checks.json")
    return out


def write_record(records: dict[str, Record], file: Path) -> None:
    """Merge records into the file: sorted, stable, without methods that are gone."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known |= {key: _kept(record) for key, record in records.items()}
    exists = {f"{e.axis}/{e.name}" for e in catalog.entries()}
    text = json.dumps({k: known[k] for k in sorted(known) if k in exists}, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".part-{file.name}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _kept(record: Record) -> dict[str, Any]:
    """What is recorded: a failure's message is for whoever runs the battery, its name is enough for the record."""
    told = asdict(record)
    return {
        **told,
        "passed": sorted(told["passed"]),
        "oracles": sorted(told["oracles"]),
        "failed": sorted(told["failed"]),
    }


def summary(records: dict[str, Record]) -> Iterable[str]:
    """Lines for a terminal."""
    for key, r in records.items():
        yield f"{key:32} {len(r.passed):3}/{r.expected:<3} oracles: {', '.join(r.oracles) or '-'}"
        for check, message in r.failed.items():
            yield f"    {check}: {message}"
