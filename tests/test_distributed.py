"""Two CPU processes give the loss curve and the weights of one: DDP for full and LoRA, FSDP for full; groups and rollouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import luthier

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def _launch(recipe: Path, extra: dict[str, str]) -> None:
    """What `accelerate launch` starts for two processes, with the CPU as the device."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **extra}
    words = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d"]
    words += ["--rdzv_endpoint", "localhost:0", "--module", "luthier.cli", "run", str(recipe), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=env, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _both(recipe: dict[str, Any], tmp_path: Path, extra: dict[str, str]) -> tuple[Path, Path]:
    """Folders of the same run in one process, and in two of half the batch each, whose loss curves are the same."""
    one = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "one")})
    recipe["train"]["per_device_train_batch_size"] //= 2
    recipe["output_dir"] = str(tmp_path / "two")
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _launch(file, extra)
    folders = (one.folder, tmp_path / "two")
    curves = [_logged(f, "loss") for f in folders]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    return folders


def _logged(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize(("tuner", "extra"), [("full", {}), ("lora", {}), ("full", FSDP)], ids=["full", "lora", "fsdp"])
def test_two_processes_equal_one(recipe: dict[str, Any], tmp_path: Path, tuner: str, extra: dict[str, str]) -> None:
    recipe["tuner"] = {"name": tuner}
    recipe["train"] |= {
        "max_steps": 6,
        "weight_decay": 0.01,
        "save_strategy": "no" if extra else "steps",
        "save_steps": 3,
    }
    folders = _both(recipe, tmp_path, extra)
    a, b = (load_file(next(f.glob("*/*model.safetensors"))) for f in folders)
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4
    assert all(torch.isfinite(v).all() for v in b.values())


def test_two_processes_share_groups_and_not_their_members(tmp_path: Path) -> None:
    """A loss of groups of rows: eight rows in one process, or a group of four in each of two."""
    recipe: dict[str, Any] = {
        "model": "nano-encoder", "data": {"train": "sandbox:documents?task=search&n=30"}, "tuner": "full",
        "objective": {"name": "contrastive", "group": 4, "similarity": "cosine"}, "evaluate": {"drift": False},
        "train": {"max_steps": 5, "per_device_train_batch_size": 8, "logging_steps": 1, "torch_threads": 1},
    }  # fmt: skip
    _both(recipe, tmp_path, {})


def test_two_processes_train_on_the_answers_of_one(tmp_path: Path) -> None:
    """Rounds of GRPO: both processes write all answers, and each trains on its half of them."""
    recipe: dict[str, Any] = {
        "model": "nano-1m", "data": {"train": "sandbox:arithmetic?task=max&n=16", "type": "prompts"}, "tuner": "full",
        "objective": {"name": "grpo", "beta": 0.1}, "evaluate": {"drift": False},
        "rollouts": {"reward": {"world": "arithmetic"}, "answers": 4, "max_new_tokens": 12, "stop": ["\n"]},
        "train": {
            "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "torch_threads": 1,
        },
    }  # fmt: skip
    folders = _both(recipe, tmp_path, {})
    rewards = [_logged(f, "reward") for f in folders]
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) > 1
