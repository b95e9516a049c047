"""`luthier evaluate`: a model on tasks, alone or paired with another one on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core import runs
from luthier.core.config import AuditSettings, audit_settings
from luthier.core.method import Decoder, LuthierError
from luthier.verbs.load import Loaded, decoder_of, load


def evaluate(
    model: str | Loaded,
    tasks: Sequence[Any] = (),
    *,
    audit: Any = None,
    base: str | Loaded | None = None,
    ceiling: str | Loaded | None = None,
    harness: bool = False,
    limit: int | None = None,
    output: str | Path | None = None,
    decoding: Any = None,
    control: Any = None,
) -> dict[str, Any]:
    """Results by task and metric; with `base`, both sides and their paired differences as in results.json.

    audit     section `evaluate.audit` of a recipe, a file that holds it, or its data alone: what `model` refuses, against what
              `base` did, with a verdict; for what is deployed in the end, merged, quantised or edited
    tasks     names or files of tasks, dicts as in a recipe, or (with `harness`) names of lm-evaluation-harness
    ceiling   a model tuned directly: `gap_closed` is then how far `model` comes on the way from `base` to it
    decoding  section of a recipe, or a decoder. Other models that it asks belong to `model`: `base` and `ceiling` are
              asked by the same choice of tokens without them, and without rules
    control   of a `model` with several controls that is loaded by name: the one that acts, or the weight of each
    """
    if audit is not None and (base is None or harness):
        raise LuthierError("an audit compares: give base, the model as it was, and no --harness")
    if not tasks and audit is None:
        raise LuthierError("nothing is asked: name a task, or an audit")
    loaded = model if isinstance(model, Loaded) else load(model, control=control)
    if harness:
        from luthier.evaluation import evaluate_harness

        found = evaluate_harness(loaded.subject(_decoder(decoding)), list(tasks), limit=limit)
    else:
        found = _own(loaded, tasks, audit, base, ceiling, limit, _decoder(decoding))
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(Path(output), found)
    return found


def _decoder(told: Any) -> Decoder | None:
    return None if told is None else decoder_of(told)


def _own(
    loaded: Loaded,
    tasks: Sequence[Any],
    audit: Any,
    base: Any,
    ceiling: Any,
    limit: int | None,
    decoding: Decoder | None,
) -> dict[str, Any]:
    from luthier.evaluation import _audit as audits
    from luthier.evaluation import measure, pair
    from luthier.evaluation._compare import gap_closed, task

    if ceiling is not None and base is None:
        raise LuthierError("ceiling says how much of a gap is closed: give base, where the gap begins")

    asked = [task(t) for t in tasks]
    if limit is not None:
        asked = [replace(t, limit=limit) for t in asked]
    if audit is not None:
        audit = audit if isinstance(audit, AuditSettings) else audit_settings(audit)
        asked += audits.tasks(audit)
    if base is None:
        return measure(loaded.subject(decoding), asked).values()
    alone = None if decoding is None else decoding.alone()

    def measured(other: Any) -> Any:
        return measure((other if isinstance(other, Loaded) else load(other)).subject(alone), asked)

    before = measured(base)
    after = measure(loaded.subject(decoding), asked, base=before)
    found = pair(before, after)
    if audit is not None:
        found["audit"] = audits.summary(before, after, found, audit)
    return found if ceiling is None else {**found, "gap_closed": gap_closed(before, after, measured(ceiling))}
