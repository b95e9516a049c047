"""A type of luthier's own, trained by transformers' and trl's trainers, which know nothing of luthier."""

import importlib.util

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from luthier.checks import tuners as battery
from luthier.checks._models import World, texts
from luthier.checks.data import vocabulary
from luthier.core import catalog

WORLD = World("llama", "causal_lm", "decoder")
TUNER = catalog.load("tuners", "bottleneck").example()


def moved(model, start) -> bool:
    return any(not torch.equal(p, start[n]) for n, p in model.named_parameters() if p.requires_grad)


def arguments(folder) -> dict:
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01, "report_to": "none",
        "use_cpu": True, "save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "bf16": False,
    }  # fmt: skip


def test_transformers_trainer(tmp_path) -> None:
    from peft import PeftModel

    model = battery.wrapped(TUNER, WORLD)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows = Dataset.from_list([{"input_ids": e.ids[:5], "labels": e.ids[:5]} for e in texts()])
    trainer = Trainer(model, TrainingArguments(**arguments(tmp_path)), train_dataset=rows)
    trainer.train()
    assert moved(model, start)
    again = PeftModel.from_pretrained(WORLD.base(), tmp_path / "checkpoint-2")
    torch.testing.assert_close(WORLD.said(again), WORLD.said(model), rtol=0, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_sft_trainer(tmp_path) -> None:
    from trl import SFTConfig, SFTTrainer

    words = vocabulary()
    base = WORLD.base(vocab_size=len(words), pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id)
    settings = SFTConfig(**arguments(tmp_path), max_length=16, gradient_checkpointing=True)
    rows = Dataset.from_list([{"text": t} for t in ("maple river", "stone cloud", "amber garden", "copper window")])
    config = TUNER.peft_config(base, "causal_lm")
    trainer = SFTTrainer(base, settings, train_dataset=rows, processing_class=words, peft_config=config)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.model.peft_config["default"].peft_type == "LUTHIER_BOTTLENECK"
    assert moved(trainer.model, start)
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
