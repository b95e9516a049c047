"""`luthier evaluate`: a model on tasks, alone or paired with another one on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core import runs
from luthier.verbs.load import Loaded, load


def evaluate(
    model: str | Loaded,
    tasks: Sequence[Any],
    *,
    base: str | Loaded | None = None,
    harness: bool = False,
    limit: int | None = None,
    output: str | Path | None = None,
    decoding: Any = None,
) -> dict[str, Any]:
    """Results by task and metric; with `base`, both sides and their paired differences as in results.json.

    tasks    names or files of tasks, dicts as in a recipe, or (with `harness`) names of lm-evaluation-harness
    """
    loaded = model if isinstance(model, Loaded) else load(model)
    if harness:
        from luthier.evaluation import evaluate_harness

        found = evaluate_harness(loaded.subject(decoding), list(tasks), limit=limit)
    else:
        found = _own(loaded, tasks, base, limit, decoding)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(Path(output), found)
    return found


def _own(loaded: Loaded, tasks: Sequence[Any], base: Any, limit: int | None, decoding: Any) -> dict[str, Any]:
    from luthier.evaluation import measure, pair
    from luthier.evaluation._compare import task

    asked = [task(t) for t in tasks]
    if limit is not None:
        asked = [replace(t, limit=limit) for t in asked]
    if base is None:
        return measure(loaded.subject(decoding), asked).values()
    other = base if isinstance(base, Loaded) else load(base)
    before = measure(other.subject(decoding), asked)
    return pair(before, measure(loaded.subject(decoding), asked, base=before))
