"""`luthier merge`: adapters and deltas into weights, or checkpoints into one; then the check that nothing changed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from luthier.core import runs
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError
from luthier.verbs._probes import MergeCheck, ask, compare
from luthier.verbs.edit import edit, merged
from luthier.verbs.load import Loaded, load


def merge(
    source: str | Path | Loaded | Sequence[str | Path], output: str | Path, *, weights: Sequence[float] | None = None
) -> MergeCheck:
    """Merge an adapter, a delta or a run into its base, or several checkpoints into one, and write an ordinary model folder.

    What was written is read back and asked the same probes. Raises Refusal where the adapter is not linear in the weights
    and Differs where the folder says something else than its source: nothing is left of it then.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        told = {"name": "merge", **({"weight": list(weights)} if weights else {})}
        check = edit({"edit": told, "models": [str(s) for s in source], "output_dir": str(output)}).check
        assert check is not None
        return check
    loaded = source if isinstance(source, Loaded) else load(source)
    if loaded.delta is None and not hasattr(loaded.model, "merge_and_unload"):
        raise LuthierError(f"'{loaded.name}' is an ordinary model: there is no adapter to merge")
    target = Path(output).expanduser()
    if not runs.replaceable(target):
        raise LuthierError(f"{target}: this is there already and no model folder: choose another one with --output")
    before = ask(loaded)
    model = base_transformer(loaded.model if loaded.delta else merged(loaded))
    checks: list[MergeCheck] = []

    def fill(part: Path) -> None:
        model.save_pretrained(part)
        loaded.tokenizer.save_pretrained(part)
        checks.append(compare(str(output), before, ask(load(str(part), loaded.task)), model.dtype))
        checks[0].demand()
        runs.write_json(part / "merge_check.json", asdict(checks[0]))

    runs.write_folder(target, fill)
    return checks[0]
