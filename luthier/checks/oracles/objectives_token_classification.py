"""A float64 loop over single tokens, and the loss that transformers' token classification heads compute from labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import CLASSES, PAD, model_of, tagged
from luthier.checks.objectives import Plain
from luthier.core import catalog
from luthier.core.batch import IGNORED, TaggedExample, collate_tagged
from luthier.core.logprobs import Scorer


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def equation(
    method: Any, examples: Sequence[TaggedExample], policy: Plain, reference: Plain, batch: Any
) -> tuple[Tensor, float]:
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for example in examples:
        z = policy.tags(example.ids)  # (T, C)
        for t, tag in enumerate(example.tags):
            if tag != IGNORED:
                total = total - (z[t, tag].exp() / z[t].exp().sum()).log()
                weight += 1
    return total, weight


def oracle_transformers() -> None:
    """The mean over tagged tokens that the model's own `labels` give, where the rest is -100."""
    objective = catalog.load("objectives", "token_classification").example()
    for name in ("bert-tagger", "llama-tagger"):
        model, batch = model_of(name), collate_tagged(list(tagged()), PAD)
        labels = torch.full_like(batch.ids, IGNORED).flatten()
        labels.index_copy_(0, batch.source, batch.target)  # type: ignore[arg-type]
        loss = objective.compute(Scorer(model), batch)
        theirs = model(**batch.inputs(), labels=labels.view_as(batch.ids)).loss
        close(loss.sum.detach() / loss.weight, theirs.detach(), f"loss and that of a {name}")


def oracle_weights_and_smoothing() -> None:
    """Weights of classes and smoothing by the formula, one token after another."""
    weights, smoothing = (0.5, 2.0, 1.0), 0.2
    cls = catalog.load("objectives", "token_classification")
    model, examples = model_of("bert-tagger").double(), list(tagged())
    for w, s in ((weights, 0.0), (None, smoothing)):
        found = cls(class_weights=w, label_smoothing=s).compute(Scorer(model), collate_tagged(examples, PAD))
        wanted = 0.0
        for e in examples:
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
            for t, tag in enumerate(e.tags):
                if tag != IGNORED:
                    target = [(1 - s) * (c == tag) + s / CLASSES for c in range(CLASSES)]
                    wanted -= (w[tag] if w else 1.0) * sum(x * float(p) for x, p in zip(target, logp[t]))
        close(found.sum.detach().double(), torch.tensor(wanted, dtype=torch.float64), "loss with weights or smoothing")
