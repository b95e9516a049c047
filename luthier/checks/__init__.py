"""The contract of each axis as plain functions: `check_<name>(method, world)`, in one file per axis.

    run(axis, name, record)   run the battery; with record=True write results/checks.json, from which status is derived
    expected(method)          names of the checks that a method's axis and capabilities imply
    run_check(method, name)   one check; raises CheckFailed with what was compared and how far apart it was

A capability that a method does not claim is asked for all the same, and must raise one clear Refusal: nothing is
skipped. Plug-in folders (LUTHIER_PLUGINS) go through the same battery; their oracles lie in <folder>/checks/oracles/.

To add a check: write `check_<name>` in the file of the axis; `@when` says for which methods, `@on` for which worlds.
To add an oracle: a file `oracles/<axis>_<method>.py` with functions `oracle_<source>()`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.checks._battery import Record, expected, run, run_battery, run_check, summary
    from luthier.checks._compare import CheckFailed

_HOMES = {
    "CheckFailed": "_compare",
    "Record": "_battery",
    "expected": "_battery",
    "run": "_battery",
    "run_battery": "_battery",
    "run_check": "_battery",
    "summary": "_battery",
}

__all__ = ["CheckFailed", "Record", "expected", "run", "run_battery", "run_check", "summary"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
