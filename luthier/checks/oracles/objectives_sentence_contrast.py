"""Sentence contrast against a float64 loop over single sentences that are given to the model as embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import collate_text
from luthier.core.logprobs import Scorer

_NAME = __name__.split("objectives_", 1)[-1]


def _vector(objective: Any, policy: Any, e: Any, key: int) -> Tensor:
    """One sentence under one draw of dropout."""
    embedded = policy.model.get_input_embeddings().weight[torch.tensor(e.ids)]
    drawn = torch.rand(embedded.shape, generator=torch.Generator().manual_seed((key + e.row) % 2**62))
    kept = torch.where(drawn < objective.dropout, torch.zeros_like(embedded), embedded / (1 - objective.dropout))
    out = policy.model(inputs_embeds=kept[None], output_hidden_states=True)
    states = out.hidden_states[-1][0]
    return {"cls": states[0], "mean": sum(states) / len(states), "last": states[-1]}[objective.pooling]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, keys = torch.zeros((), dtype=torch.float64), batch.extras["draws"]
    for at in range(0, len(examples), objective.group):
        group = examples[at : at + objective.group]
        first, second = ([_vector(objective, policy, e, key) for e in group] for key in keys)
        for i, e in enumerate(group):
            s = [
                (first[i] * v).sum() / (first[i].norm() * v.norm()) / objective.temperature
                for j, v in enumerate(second)
                if j == i or group[j].ids != e.ids
            ]
            own = (first[i] * second[i]).sum() / (first[i].norm() * second[i].norm()) / objective.temperature
            total = total + torch.log(sum(torch.exp(x) for x in s)) - own  # type: ignore[arg-type]
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    size = catalog.load("objectives", _NAME).example().group
    groups = [examples[i : i + size] for i in range(0, len(examples), size)]
    return sum(len(g) * math.log(len(g)) for g in groups) / len(examples)


def oracle_options() -> None:
    """Poolings, group sizes, a sentence that stands twice, and a model with a masked-LM head, by the loop."""
    from luthier.checks.objectives import Plain

    base, examples = catalog.load("objectives", _NAME).example(), list(texts())
    examples[2] = replace(examples[0], row=2)
    told: list[dict[str, Any]] = [
        {"pooling": "cls", "group": 6}, {"pooling": "last", "dropout": 0.3, "group": 3}, {"group": 4, "task": "masked_lm"},
    ]  # fmt: skip
    for options in told:
        objective = replace(base, **options)
        model = model_of("bert" if "task" in options else "bert-embedding").double()
        batch = objective.view(collate_text(examples, PAD), 0, 1, np.random.default_rng(4))
        found = objective.compute(Scorer(model), batch).sum.detach()
        wanted, _ = equation(objective, examples, Plain(model), None, batch)
        close(found, wanted.detach(), f"loss with {options}")


@torch.no_grad()
def oracle_torch() -> None:
    """One group of different sentences: cross-entropy of the matrix of cosines."""
    from luthier.checks.objectives import Plain

    examples, model = list(texts()), model_of("bert-embedding").double()
    objective = replace(catalog.load("objectives", _NAME).example(), group=len(examples), temperature=0.05)
    batch = objective.view(collate_text(examples, PAD), 0, 1, np.random.default_rng(4))
    first, second = (
        torch.stack([_vector(objective, Plain(model), e, k) for e in examples]) for k in batch.extras["draws"]
    )
    scores = F.cosine_similarity(first[:, None], second[None], dim=-1) / 0.05
    wanted = F.cross_entropy(scores, torch.arange(len(examples)), reduction="sum")
    close(objective.compute(Scorer(model), batch).sum, wanted, "loss and torch's cross-entropy")
