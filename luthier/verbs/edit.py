"""`luthier edit`: change weights without training, by a method of the edits axis."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core import runs
from luthier.core.config import ConfigError, build, read_yaml
from luthier.verbs.load import Loaded, load

KEYS = ("name", "edit", "models", "output_dir")


def edit(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Load `models`, apply `edit` to their weights, write an ordinary model folder to `output_dir`.

    The first model gives architecture and tokenizer. Adapters are merged into their base first. Raises ConfigError and
    LuthierError; nothing is written unless the edit succeeds.
    """
    where = str(recipe) if isinstance(recipe, str | Path) else "recipe"
    told = {**(read_yaml(recipe) if isinstance(recipe, str | Path) else recipe), **(overrides or {})}
    for key in told:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise ConfigError(
                f"{where}: unknown key '{key}'" + (f": did you mean '{near[0]}'?" if near else f" ({KEYS})")
            )
    for key in ("edit", "models", "output_dir"):
        if key not in told:
            raise ConfigError(f"{where}: '{key}' is missing")
    section = told["edit"] if isinstance(told["edit"], dict) else {"name": told["edit"]}
    method = build("edits", section, "edit")
    parts = [_dense(load(m)) for m in told["models"]]
    first = parts[0]
    first.model.load_state_dict(method.apply([p.model.state_dict() for p in parts], first.model))
    out = Loaded(first.model, first.tokenizer, first.task, str(told["output_dir"]), str(told["output_dir"]))
    target = Path(told["output_dir"])
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(part: Path) -> None:
        out.model.save_pretrained(part)
        out.tokenizer.save_pretrained(part)
        runs.write_json(part / "edit.json", {**told, "versions": runs.versions(), "git": runs.git()})

    runs.write_folder(target, fill)
    return out


def _dense(loaded: Loaded) -> Loaded:
    if hasattr(loaded.model, "merge_and_unload"):
        loaded.model = loaded.model.merge_and_unload(safe_merge=True)
    return loaded
