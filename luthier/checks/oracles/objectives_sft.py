"""SFT against a float64 loop, and against the `labels=` loss of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import IGNORED, SourceTargetExample, collate_text
from luthier.core.logprobs import Scorer


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """- sum over counted tokens of log pi(token | past); their number."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        if isinstance(e, SourceTargetExample):
            logp = policy.decoder_logp(e.ids, [policy.start, *e.target[:-1]])
            for t, token in enumerate(e.target):
                total, n = total - logp[t, token], n + 1
            continue
        logp = policy.logp(e.ids)
        for t in range(1, len(e.ids)):
            if e.counts[t]:
                total, n = total - logp[t - 1, e.ids[t]], n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def oracle_transformers() -> None:
    """transformers' own loss for the same labels: a mean over all tokens of the batch."""
    model, examples = model_of("llama"), list(texts())
    batch = collate_text(examples, PAD)
    labels = torch.full_like(batch.ids, IGNORED)
    for b, e in enumerate(examples):
        for t in range(len(e.ids)):
            labels[b, t] = e.ids[t] if e.counts[t] else IGNORED
    wanted = model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    loss = catalog.load("objectives", _NAME).example().compute(Scorer(model), batch)
    close((loss.sum / loss.weight).detach(), wanted.detach(), "loss and transformers' loss")


_NAME = __name__.rsplit("_", 1)[-1]
