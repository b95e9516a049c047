"""Saved, then loaded in another process: one process for all tuners and architectures, because starting it is the cost.

python -m luthier.checks._fresh FOLDER     reads FOLDER/jobs.json, writes what each model says to FOLDER/said.safetensors
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.checks._models import ARCHITECTURES, WORLDS, World


@dataclass
class Outcome:
    """`wanted` was said before saving, `found` by the process that loaded; an error instead of either."""

    wanted: Tensor | None = None
    found: Tensor | None = None
    error: str = ""


@cache
def outcomes() -> dict[tuple[str, str], Outcome]:
    """(tuner, architecture) to what became of it. Runs once."""
    from luthier.checks import _battery
    from luthier.checks.tuners import moved, worlds

    transformers.utils.logging.disable_progress_bar()
    out: dict[tuple[str, str], Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for _, name in _battery.pairs("tuners"):
            tuner = _battery.example("tuners", name)
            for world in worlds(tuner):
                key = (name, world.architecture)
                try:
                    with _battery.fixed_random_state():
                        model = moved(tuner, world)
                        at = Path(folder) / f"{name}-{world.architecture}"
                        model.save_pretrained(at)
                        out[key] = Outcome(wanted=world.said(model))
                    jobs.append([name, world.architecture, tuner.artefact])
                except Exception as error:  # told by this tuner's own check, not by the others'
                    out[key] = Outcome(error=f"saving: {type(error).__name__}: {error}")
        _run(Path(folder), jobs, out)
    return out


def _run(folder: Path, jobs: list[list[str]], out: dict[tuple[str, str], Outcome]) -> None:
    for world in WORLDS:
        world.base().save_pretrained(folder / f"base-{world.architecture}")
    (folder / "jobs.json").write_text(json.dumps({"threads": torch.get_num_threads(), "jobs": jobs}))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier.checks._fresh", str(folder)], env=env, capture_output=True, text=True
    )
    if done.returncode:
        for key in out:
            out[key].error = out[key].error or f"the fresh process died: {done.stderr[-400:]}"
        return
    found = load_file(folder / "said.safetensors")
    errors = json.loads((folder / "errors.json").read_text())
    for (name, architecture), outcome in out.items():
        outcome.found = found.get(f"{name}/{architecture}")
        outcome.error = outcome.error or errors.get(f"{name}/{architecture}", "")


def _load(folder: Path, name: str, world: World, artefact: str) -> Any:
    cls = getattr(transformers, ARCHITECTURES[world.architecture][0])
    if artefact == "model":
        return cls.from_pretrained(folder / f"{name}-{world.architecture}")
    from peft import PeftModel

    base = cls.from_pretrained(folder / f"base-{world.architecture}")
    return PeftModel.from_pretrained(base, folder / f"{name}-{world.architecture}")


def main(folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    told = json.loads((folder / "jobs.json").read_text())
    torch.set_num_threads(told["threads"])
    worlds = {w.architecture: w for w in WORLDS}
    said, errors = {}, {}
    for name, architecture, artefact in told["jobs"]:
        world = worlds[architecture]
        try:
            said[f"{name}/{architecture}"] = world.said(_load(folder, name, world, artefact))
        except Exception as error:
            errors[f"{name}/{architecture}"] = f"loading: {type(error).__name__}: {error}"
    save_file(said, folder / "said.safetensors")
    (folder / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
