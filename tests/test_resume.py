"""Runs that are killed, interrupted, diverge or meet a full disk: nothing saved is lost, and resuming is exact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import luthier
from luthier.core import runs
from luthier.core.loop import Diverged, Interrupted, LoopCallback
from luthier.core.method import LuthierError


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(
        next(folder.glob("model/model.safetensors"), None) or folder / "adapter" / "adapter_model.safetensors"
    )


def _same(a: Path, b: Path) -> bool:
    x, y = _weights(a), _weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class _At(LoopCallback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any):
        self.at, self.action = step, action

    def step(self, loop: Any) -> None:
        if loop.step_index == self.at:
            self.action()


@pytest.mark.parametrize(
    "tuner",
    [
        {"name": "hft", "reselect": "epoch"},
        {"name": "lora", "r": 4, "dropout": 0.1},
        {"name": "prompt_tuning", "tokens": 3},
        {"name": "adalora", "r": 4, "target": 2, "every": 1, "last": 0.1},
        {"name": "child_tuning"},
        {"name": "child_tuning", "variant": "task_driven", "rows": 4},
        {"name": "sparse_adapter", "size": 4, "rows": 4},
        {"name": "reinit", "decay": 0.5},
        {"name": "green", "budget": 0.7, "interval": 1},
        {"name": "green_lora", "r": 4, "budget": 0.6},
        {"name": "apet", "budget": 2000, "level": "scalars"},
    ],
    ids=lambda t: "-".join(str(v) for v in t.values() if isinstance(v, str)),
)
def test_interrupted_run_resumes_to_the_same_bits(
    recipe: dict[str, Any], tmp_path: Path, tuner: dict[str, Any]
) -> None:
    recipe["tuner"] = tuner
    recipe["data"]["train"] = "sandbox:sequence?task=copy&n=24"  # three steps an epoch: the draw changes during the run
    recipe["train"] |= {"weight_decay": 0.05}
    whole = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "whole")})
    with pytest.raises(Interrupted, match="--resume"):
        luthier.run(recipe, quiet=True, callbacks=[_At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    stopped = Path(recipe["output_dir"])
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert (stopped / "checkpoint-5" / "optimizer.pt").exists()
    again = luthier.run(recipe, quiet=True, resume=True)
    assert _same(whole.folder, again.folder)
    assert json.loads((stopped / "run.json").read_text())["status"] == "done"


def test_sigkill_in_the_middle_of_a_checkpoint(recipe: dict[str, Any], tmp_path: Path) -> None:
    """A real process is killed while a checkpoint is half-written; what is there is whole, and the run goes on from it."""
    recipe["train"] |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 10}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    script = f"""
import os, signal, torch
import luthier
from luthier.core import loop
real, calls = torch.save, []
def save(obj, path, *a, **k):                     # the second checkpoint dies before its last file
    calls.append(path)
    if "checkpoint-4" in str(path) and "rng" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(obj, path, *a, **k)
torch.save = save
torch.set_num_threads(1)
luthier.run({str(file)!r}, quiet=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = runs.RunFolder(recipe["output_dir"])
    assert [p.name for p in folder.checkpoints()] == ["checkpoint-2"]
    again = luthier.run(recipe, quiet=True, resume=True)
    assert not list(folder.path.glob(f"{runs.TEMPORARY}*"))
    whole = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "whole")})
    assert _same(whole.folder, again.folder)


def test_full_disk_keeps_what_was_saved(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe["train"] |= {"save_strategy": "steps", "save_steps": 2}
    real = torch.save

    def full(value: Any, path: Any, *more: Any, **named: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(28, "No space left on device")
        real(value, path, *more, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LuthierError, match=r"checkpoint-4.*No space left.*untouched"):
        luthier.run(recipe, quiet=True)
    folder = runs.RunFolder(recipe["output_dir"])
    assert [p.name for p in folder.checkpoints()] == ["checkpoint-2"]
    assert folder.manifest["status"] == "failed"
    monkeypatch.undo()
    assert luthier.run(recipe, quiet=True, resume=True).fitted.steps == 8


def test_a_loss_that_is_not_finite_stops_before_the_step(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.objectives.sft import SFT

    seen: list[int] = []

    def broken(self: Any, tokens: Any) -> torch.Tensor:
        seen.append(1)
        return -tokens.logp * (float("nan") if len(seen) > 5 else 1.0)  # the fifth is the cost measurement's successor

    monkeypatch.setattr(SFT, "loss", broken)
    with pytest.raises(Diverged, match="not finite"):
        luthier.run(recipe, quiet=True)
    folder = runs.RunFolder(recipe["output_dir"])
    last = folder.last_checkpoint()
    assert last is not None
    assert all(torch.isfinite(v).all() for v in load_file(last / "model.safetensors").values())
    assert folder.manifest["status"] == "failed"


def test_a_finished_run_is_not_overwritten(recipe: dict[str, Any]) -> None:
    luthier.run(recipe, quiet=True)
    with pytest.raises(LuthierError, match="a run is here already"):
        luthier.run(recipe, quiet=True)


def test_resuming_with_another_recipe_is_refused(recipe: dict[str, Any]) -> None:
    recipe["train"] |= {"save_strategy": "steps", "save_steps": 2}
    luthier.run(recipe, quiet=True)
    with pytest.raises(LuthierError, match="'train' is not that of the run to resume"):
        luthier.run(recipe, quiet=True, resume=True, overrides={"learning_rate": 1e-5})


def test_rotation_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    folder = runs.RunFolder(tmp_path)
    for step in (1, 2, 3, 4):
        folder.save_checkpoint(step, lambda p: (p / "trainer_state.json").write_text("{}"))
    folder.rotate(1, "checkpoint-2")
    assert [p.name for p in folder.checkpoints()] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_sigkill_at_random_moments(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Kill -9 again and again at arbitrary moments; the run always comes to the same end."""
    recipe["train"] |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 40}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    whole = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "whole")})
    for attempt in range(12):
        words = [sys.executable, "-m", "luthier.cli", "run", str(file), "--quiet"] + (["--resume"] if attempt else [])
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        time.sleep(6 + attempt % 3)
        process.kill()
        process.wait()
    again = luthier.run(recipe, quiet=True, resume=True)
    assert _same(whole.folder, again.folder)
