"""Rerank against a float64 loop over single sequences, and against torch's cross-entropy where all rows have as many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, searches
from luthier.core import catalog
from luthier.core.batch import collate_searches
from luthier.core.logprobs import Scorer


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        s = [policy.head(d)[0] for d in e.documents]
        total = total - torch.log(torch.exp(s[0]) / sum(torch.exp(x) for x in s))
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return sum(math.log(len(e.documents)) for e in examples) / len(examples)


@torch.no_grad()
def oracle_torch() -> None:
    examples = [replace(e, documents=e.documents[:2], keys=e.keys[:2]) for e in searches(paired=True)]
    model: Any = model_of("bert-classifier", num_labels=1).double()
    objective = catalog.load("objectives", __name__.rsplit("_", 1)[-1]).example()
    found = objective.compute(Scorer(model), collate_searches(examples, PAD)).sum
    scores = torch.stack([model(input_ids=torch.tensor([d])).logits[0, 0] for e in examples for d in e.documents])
    label = torch.zeros(len(examples), dtype=torch.long)
    close(found, F.cross_entropy(scores.view(-1, 2), label, reduction="sum"), "loss and torch's cross-entropy")
