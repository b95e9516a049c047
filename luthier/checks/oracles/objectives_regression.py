"""Regression against a float64 loop, transformers' own head, and scikit-learn's mean squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, labelled, model_of
from luthier.core import catalog
from luthier.core.batch import collate_labelled
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    for e, label in zip(examples, batch.label.double()):  # labels are stored in float32
        total = total + (policy.head(e.ids)[0] - label) ** 2
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return sum(e.label**2 for e in examples) / len(examples)


def _loss() -> tuple[Tensor, Any, Any]:
    model, batch = model_of("bert-classifier", num_labels=1), collate_labelled(list(labelled("regression")), PAD)
    found = catalog.load("objectives", _NAME).example().compute(Scorer(model), batch)
    return (found.sum / found.weight).detach(), model, batch


def oracle_transformers() -> None:
    loss, model, batch = _loss()
    close(loss, model(**batch.inputs(), labels=batch.label).loss.detach(), "loss and transformers' loss")


def oracle_sklearn() -> None:
    from sklearn.metrics import mean_squared_error

    loss, model, batch = _loss()
    wanted = mean_squared_error(batch.label, model(**batch.inputs()).logits[:, 0].detach())
    close(loss, torch.tensor(wanted), "loss and scikit-learn's mean squared error")
