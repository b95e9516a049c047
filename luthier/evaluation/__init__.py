"""What a model can do: one scorer per file, versioned tasks in `tasks/`. Nothing is imported until it is used.

measure(subject, tasks)             ask a model about tasks                       -> Measured
pair(base, tuned)                   compare two of them on the same items         -> results
rescore(file, scorer)               score kept generations by another scorer
evaluate_harness(subject, tasks)    tasks of lm-evaluation-harness
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.evaluation._compare import Measured, Task, measure, pair, rescore
    from luthier.evaluation._harness import evaluate_harness, harness_model

_HOMES = {
    "Measured": "_compare",
    "Task": "_compare",
    "evaluate_harness": "_harness",
    "harness_model": "_harness",
    "measure": "_compare",
    "pair": "_compare",
    "rescore": "_compare",
}

__all__ = ["Measured", "Task", "evaluate_harness", "harness_model", "measure", "pair", "rescore"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
