"""DPO against a float64 loop, and against the loss that trl's trainer computes for the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import CheckFailed, close
from luthier.checks._models import PAD, groups
from luthier.core import catalog
from luthier.core.batch import collate_groups
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """log(1 + exp(-beta * margin)) of each pair; their number."""
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        chosen, rejected = e.answers
        won = policy.answer_logp(e.prompt, chosen) - reference.answer_logp(e.prompt, chosen).detach()
        lost = policy.answer_logp(e.prompt, rejected) - reference.answer_logp(e.prompt, rejected).detach()
        total = total + torch.log1p(torch.exp(-objective.beta * (won - lost)))
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2)


def oracle_trl() -> None:
    """trl's DPOTrainer, on a batch that its own collator made; the reference is another model."""
    import tempfile

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from luthier.checks.data import vocabulary
    from luthier.checks.objectives import World

    examples = groups(6)
    world = World("pairs", "llama", examples)
    objective, policy = catalog.load("objectives", _NAME).example(), world.model()
    batch = collate_groups(list(examples), PAD)
    batch.reference = torch.cat(world.references)
    loss = objective.compute(Scorer(policy), batch)
    rows = [{"prompt_ids": e.prompt, "chosen_ids": e.answers[0], "rejected_ids": e.answers[1]} for e in examples]
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder, beta=objective.beta, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, per_device_train_batch_size=6,
        )  # fmt: skip
        trainer = DPOTrainer(
            policy, world.model(reference=True), settings, processing_class=vocabulary(),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),  # not trained on
        )  # fmt: skip
        wanted = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    if not torch.is_tensor(wanted):
        raise CheckFailed("trl's trainer returned no loss")
    close((loss.sum / loss.weight).detach(), wanted.detach(), "loss and trl's loss")
