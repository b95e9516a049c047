"""The checks of procedures tell what is broken: a plug-in that resumes nothing and tells callbacks nothing."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from luthier.checks import CheckFailed, _battery, expected, run_check

PROCEDURE = '''
"""Twice: a run on the model of a run."""

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.method import Recipe


@dataclass(frozen=True)
class Twice(Recipe):
    paper: ClassVar[str] = "none"

    def run(self, folder, *, recipe, say, **given):
        from luthier.recipes._stages import resumed
        from luthier.verbs.run import run

        told = {**recipe.model_dump(exclude_unset=True), "procedure": None}
        first = {**told, "output_dir": f"{folder}/first", "evaluate": {"drift": False}}
        if not (given.get("resume") and RESUMES and done(f"{folder}/first")):
            run(first, quiet=True, resume=resumed(f"{folder}/first", given.get("resume")) if RESUMES else None)
        last = {**told, "model": f"{folder}/first", "output_dir": folder}
        return run(last, **{**given, "resume": resumed(folder, given.get("resume")), **GIVEN})


def done(folder):
    from pathlib import Path

    return Path(folder, "results.json").exists()
'''
RECIPE = """
# a run on the model of a run
name: twice
model: nano-1m
procedure: NAME
data: {train: "sandbox:sequence?task=copy&n=40"}
train: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-3, torch_threads: 1}
evaluate: {tasks: [{name: copy, scorer: skills, task: copy, n: 4}]}
output_dir: runs/twice
"""


def _plug(folder: Path, name: str, **changes: object) -> None:
    values = {"RESUMES": True, "GIVEN": {}, **changes}
    text = PROCEDURE + "\n\n" + "\n".join(f"{k} = {v!r}" for k, v in values.items()) + "\n"
    for part in (folder / "recipes", folder / "configs" / "recipes"):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "recipes" / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    (folder / "configs" / "recipes" / f"{name}.yaml").write_text(RECIPE.lstrip().replace("NAME", name))


def _failing(name: str) -> set[str]:
    method = _battery.example("recipes", name)
    found = set()
    for check in expected(method):
        try:
            run_check(method, check)
        except CheckFailed:
            found.add(check)
    return found


def test_what_is_broken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug(tmp_path, "twice_broken", RESUMES=False, GIVEN={"callbacks": ()})
    monkeypatch.setenv("LUTHIER_PLUGINS", str(tmp_path))
    assert _failing("twice_broken") == {"resumed", "keys_kept", "surroundings"}  # the manifest names another model
