"""Classification against a float64 loop, transformers' own heads, and scikit-learn's log loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import CLASSES, PAD, labelled, model_of
from luthier.core import catalog
from luthier.core.batch import collate_labelled
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        z = policy.head(e.ids)
        if isinstance(e.label, list):
            for zl, yl in zip(z, e.label):
                p = 1 / (1 + torch.exp(-zl))
                total = total - (yl * torch.log(p) + (1 - yl) * torch.log(1 - p)) / len(e.label)
            continue
        p = torch.exp(z[e.label]) / torch.exp(z).sum()
        weight = 1.0 if objective.class_weights is None else objective.class_weights[e.label]
        total = total - weight * (1 - p) ** objective.focal * torch.log(p)
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2) if isinstance(examples[0].label, list) else math.log(outputs)


def _loss(problem: str, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """Mean loss of the method, head outputs, and the batch."""
    model, batch = model_of("bert-classifier", problem_type=problem), collate_labelled(list(labelled(problem)), PAD)
    found = replace(catalog.load("objectives", _NAME).example(), **options).compute(Scorer(model), batch)
    return (found.sum / found.weight).detach(), model(**batch.inputs()).logits.detach(), (model, batch)


def oracle_transformers() -> None:
    """The loss that transformers' classification heads compute from labels, for both kinds of problems."""
    for problem in ("single_label_classification", "multi_label_classification"):
        loss, _, (model, batch) = _loss(problem)
        wanted = model(**batch.inputs(), labels=batch.label).loss
        close(loss, wanted.detach(), f"{problem}: loss and transformers' loss")


def oracle_sklearn() -> None:
    from sklearn.metrics import log_loss

    loss, logits, (_, batch) = _loss("single_label_classification")
    wanted = log_loss(batch.label, logits.double().softmax(-1), labels=list(range(CLASSES)))
    close(loss, torch.tensor(wanted), "loss and scikit-learn's log loss")


def oracle_options() -> None:
    """Class weights and the focal factor, by the equation, in float64."""
    from luthier.checks.objectives import Plain

    examples, model = list(labelled()), model_of("bert-classifier").double()
    for options in ({"focal": 2.0}, {"class_weights": (0.5, 2.0, 1.0)}):
        objective = replace(catalog.load("objectives", _NAME).example(), **options)
        found = objective.compute(Scorer(model), collate_labelled(examples, PAD))
        wanted, _ = equation(objective, examples, Plain(model), None, None)
        close(found.sum.detach(), wanted.detach(), f"loss with {options}")
