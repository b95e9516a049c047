"""DFT against a float64 loop, and against trl's SFTTrainer with its `dft` loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, texts
from luthier.checks.oracles import _pairs
from luthier.core import catalog
from luthier.core.batch import IGNORED, SourceTargetExample, collate_text
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        if isinstance(e, SourceTargetExample):
            logp = policy.decoder_logp(e.ids, [policy.start, *e.target[:-1]])
            found = [logp[t, token] for t, token in enumerate(e.target)]
        else:
            logp = policy.logp(e.ids)
            found = [logp[t - 1, e.ids[t]] for t in range(1, len(e.ids)) if e.counts[t]]
        for x in found:
            total, n = total - math.exp(float(x.detach())) * x, n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs) / outputs


def oracle_trl() -> None:
    from trl import SFTConfig, SFTTrainer

    model, examples = model_of("llama"), list(texts())
    loss = catalog.load("objectives", _NAME).example().compute(Scorer(model), collate_text(examples, PAD))
    labels = [[t if c else IGNORED for t, c in zip(e.ids, e.counts)] for e in examples]
    inputs = {
        "input_ids": _pairs.padded([e.ids for e in examples], PAD),
        "attention_mask": _pairs.padded([[1] * len(e) for e in examples], 0),
        "labels": _pairs.padded(labels, IGNORED),
    }
    with _pairs.trl_trainer(SFTTrainer, SFTConfig, (model,), {"text": "a b"}, loss_type="dft") as trainer:
        wanted = trainer.compute_loss(trainer.model.eval(), inputs)
    close((loss.sum / loss.weight).detach(), wanted.detach(), "loss and trl's")
