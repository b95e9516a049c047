"""Two CPU processes give the loss curve and the weights of one: DDP for full and LoRA, FSDP for full."""

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


@pytest.mark.parametrize(("tuner", "extra"), [("full", {}), ("lora", {}), ("full", FSDP)], ids=["full", "lora", "fsdp"])
def test_two_processes_equal_one(recipe: dict[str, Any], tmp_path: Path, tuner: str, extra: dict[str, str]) -> None:
    recipe["tuner"] = {"name": tuner}
    recipe["train"] |= {
        "max_steps": 6,
        "weight_decay": 0.01,
        "save_strategy": "no" if extra else "steps",
        "save_steps": 3,
    }
    one = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "one")})
    recipe["train"]["per_device_train_batch_size"] = 4
    recipe["output_dir"] = str(tmp_path / "two")
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _launch(file, extra)
    curves = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").open()] for f in (one.folder, tmp_path / "two")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    a, b = (load_file(next(f.glob("*/*model.safetensors"))) for f in (one.folder, tmp_path / "two"))
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
    one = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "one")})
    recipe["train"]["per_device_train_batch_size"] = 4
    recipe["output_dir"] = str(tmp_path / "two")
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _launch(file, {})
    curves = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").open()] for f in (one.folder, tmp_path / "two")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
