"""Adversarial tuning against a float64 loop over single texts that are given to the model as embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, labelled, model_of
from luthier.core import catalog
from luthier.core.batch import collate_labelled
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def _apart(a: Tensor, b: Tensor, label: Any) -> Tensor:
    """The symmetric divergence of two outputs (C,), written out."""
    if isinstance(label, float):
        return (a[0] - b[0]) ** 2
    if isinstance(label, list):
        total = torch.zeros((), dtype=a.dtype)
        for x, y in zip(a, b):
            p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(-y))
            total = total + p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
            total = total + q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))
        return total / len(label)
    p, q = torch.exp(a) / torch.exp(a).sum(), torch.exp(b) / torch.exp(b).sum()
    return (p * torch.log(p / q)).sum() + (q * torch.log(q / p)).sum()


def _task(z: Tensor, label: Any) -> Tensor:
    if isinstance(label, float):
        return (z[0] - torch.tensor(label).double()) ** 2  # labels are stored in float32
    if isinstance(label, list):
        p = 1 / (1 + torch.exp(-z))
        return torch.stack([-torch.log(p[i] if y else 1 - p[i]) for i, y in enumerate(label)]).mean()
    return -torch.log(torch.exp(z[label]) / torch.exp(z).sum())


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    table = policy.model.get_input_embeddings().weight
    for e in examples:
        embedded = table[torch.tensor(e.ids)]  # (T, D)
        scale = embedded.detach().var(-1, unbiased=False).sqrt()[:, None] if objective.relative else 1.0

        def said(push: Tensor | float, embedded: Tensor = embedded, scale: Any = scale) -> Tensor:
            return policy.model(inputs_embeds=(embedded + scale * push)[None]).logits[0]

        z = policy.head(e.ids)
        drawn = torch.Generator().manual_seed((batch.extras["push"] + e.row) % 2**62)
        d = (objective.sigma * torch.randn(embedded.shape, generator=drawn)).double()
        stays = torch.tensor([i in objective.special for i in e.ids])
        d[stays] = 0
        for _ in range(objective.steps):
            d.requires_grad_()
            (g,) = torch.autograd.grad(_apart(said(d), z.detach(), e.label), d)
            d = d.detach().clone()
            for t in (~stays).nonzero()[:, 0].tolist():
                d[t] += objective.step_size * g[t] / g[t].abs().max()
        total = total + _task(z, e.label) + objective.strength * _apart(z, said(d), e.label)
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2) if isinstance(examples[0].label, list) else math.log(outputs)


def oracle_options() -> None:
    """Numbers and classes, several steps, absolute pushes, special tokens, by the loop."""
    from luthier.checks.objectives import Plain

    base = catalog.load("objectives", _NAME).example()
    told: list[dict[str, Any]] = [
        {"of": {"name": "regression"}}, {"steps": 3, "strength": 2.5}, {"relative": False}, {"steps": 0, "sigma": 0.3},
        {"special": tuple(labelled()[0].ids[:2])},
    ]  # fmt: skip
    for options in told:
        objective = replace(base, **options)
        examples = list(labelled(objective.problems[0]))
        model = model_of("bert-classifier", num_labels=1 if "of" in options else 3).double()
        batch = objective.view(collate_labelled(examples, PAD), 0, 1, np.random.default_rng(3))
        found = objective.compute(Scorer(model), batch).sum.detach()
        wanted, _ = equation(objective, examples, Plain(model), None, batch)
        close(found, wanted.detach(), f"loss with {options}")
