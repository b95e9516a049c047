"""`luthier shift`: which tokens of a tuned model's answers its base would not have written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core import runs
from luthier.core.method import LuthierError
from luthier.verbs.load import Loaded, load


def shift(
    base: str | Loaded,
    tuned: str | Loaded,
    prompts: str | Sequence[Any],
    *,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    around: str = "",
    k: int = 3,
    limit: int | None = 64,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """The table of `token_shift` for any two models with the same tokens.

    prompts  prompts, or a source of rows that have one (a file, a sandbox task, a data set)
    around   a layout that the base reads its prompts in, with `k` examples; "" is the same tokens as the tuned model
    output   a folder for shift.json and report.html
    """
    from luthier.analysis.token_shift import compare, table_of
    from luthier.evaluation._family import shown

    began = runs.now()
    models = [m if isinstance(m, Loaded) else load(m) for m in (base, tuned)]
    odd = next((m for m in models if m.task != "causal_lm"), None)
    if odd is not None:
        raise LuthierError(f"'{odd.name}' is a {odd.task} model: token shift compares causal language models")
    asked = _prompts(prompts, limit)
    before, after = (m.subject() for m in models)
    found = compare(before, after, asked, max_new_tokens, stop, around, k)
    table = table_of(found, after.tokenizer, [shown(p) for p in asked])
    if output is not None:
        from luthier.report.looks import write_shift_report

        told = {
            **runs.provenance(), "kind": "shift", "status": "done", "started": began, "finished": runs.now(),
            "base": models[0].name, "tuned": models[1].name, "prompts": len(asked), "around": around, "table": table,
        }  # fmt: skip
        Path(output).mkdir(parents=True, exist_ok=True)
        runs.write_json(Path(output) / "shift.json", told)
        write_shift_report(output)
    return table


def _prompts(told: str | Sequence[Any], limit: int | None) -> list[Any]:
    if not isinstance(told, str):
        return list(told)[:limit]
    from luthier.data import read
    from luthier.evaluation._family import items_of, need

    items = items_of(list(read(told, limit=limit).rows))
    need(items, "prompt", "shift")
    return [i.prompt for i in items]
