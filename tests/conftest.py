"""Fixtures shared by all tests: a tiny random model on disk, and recipes on the sandbox. Everything is offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random three-layer Llama with the sandbox tokenizer, as an ordinary transformers folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier import sandbox

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = sandbox.tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """A small SFT run on the tiny model; tests change what they are about."""
    return {
        "name": "test",
        "model": str(tiny),
        "data": {"train": "sandbox:sequence?task=copy&n=64"},
        "tuner": {"name": "full"},
        "objective": {"name": "sft"},
        "train": {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "logging_steps": 1},
        "evaluate": {"drift": False},
        "output_dir": str(tmp_path / "run"),
    }
