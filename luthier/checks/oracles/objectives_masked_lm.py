"""Masked language modelling against a float64 loop, and against the `labels=` loss of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import close, require
from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import IGNORED, TextExample, collate_text
from luthier.core.logprobs import Scorer

_NAME = __name__.split("objectives_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """- log pi(hidden token | corrupted text), over the positions that the corrupted batch hides."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    width = batch.ids.shape[1]
    logp = {b: policy.logp(batch.ids[b, : len(e.ids)].tolist()) for b, e in enumerate(examples)}
    for at in batch.source.tolist():
        row, t = divmod(at, width)
        total, n = total - logp[row][t, examples[row].ids[t]], n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def _viewed(objective: Any, examples: list[Any], seed: int) -> tuple[Any, Tensor]:
    """A corrupted batch and transformers' labels for it."""
    plain = collate_text(examples, PAD)
    batch = objective.view(plain, 0, 1, np.random.default_rng(seed))
    labels = torch.full_like(plain.ids, IGNORED).flatten()
    labels[batch.source] = plain.ids.flatten()[batch.source]
    return batch, labels.view_as(plain.ids)


def oracle_transformers() -> None:
    objective, model = catalog.load("objectives", _NAME).example(), model_of("bert")
    batch, labels = _viewed(objective, list(texts()), seed=0)
    wanted = model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    loss = objective.compute(Scorer(model), batch)
    close((loss.sum / loss.weight).detach(), wanted.detach(), "loss and transformers' loss")


def oracle_shares() -> None:
    """Of many tokens the stated shares are hidden: of those 80 % masked, 10 % random, 10 % left; others untouched."""
    objective = catalog.load("objectives", _NAME).example()
    long = [TextExample(r, [20 + t % 40 for t in range(400)], [True] * 400) for r in range(50)]
    plain = collate_text(long, PAD)
    batch, _ = _viewed(objective, long, seed=1)
    n, hidden = 50 * 399, len(batch.source)
    now, was = batch.ids.flatten()[batch.source], plain.ids.flatten()[batch.source]
    masked, kept = (now == objective.mask_id).double().mean(), (now == was).double().mean()
    for found, share, of in ((hidden / n, objective.rate, n), (float(masked), 0.8, hidden), (float(kept), 0.1, hidden)):
        room = 4 * math.sqrt(share * (1 - share) / of) + 0.1 / objective.vocabulary  # a random token may be the old one
        require(abs(found - share) < room, f"share {found:.4f}, stated {share} (within {room:.4f})")
    rest = torch.ones(plain.ids.numel(), dtype=torch.bool)
    rest[batch.source] = False
    require(
        torch.equal(batch.ids.flatten()[rest], plain.ids.flatten()[rest]), "a token that is not predicted was changed"
    )
