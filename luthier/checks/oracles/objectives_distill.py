"""Distillation against a float64 loop over positions and vocabulary, every divergence, and against trl's GKD loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import VOCABULARY
from luthier.core import catalog
from luthier.core.batch import SourceTargetExample

_NAME = __name__.rsplit("_", 1)[-1]


def scored(models: Sequence[Any], e: Any) -> list[tuple[Tensor, ...]]:
    """Rows (V,) of log-probabilities of each model at every token that counts."""
    if isinstance(e, SourceTargetExample):
        logp = [m.decoder_logp(e.ids, [m.start, *e.target[:-1]]) for m in models]
        return [tuple(rows[t] for rows in logp) for t in range(len(e.target))]
    logp = [m.logp(e.ids) for m in models]
    return [tuple(rows[t - 1] for rows in logp) for t in range(1, len(e.ids)) if e.counts[t]]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        for log_q, log_p in scored((policy, reference), e):
            q, p = (torch.exp(x / objective.temperature) for x in (log_q, log_p.detach()))
            total, n = total + objective.temperature**2 * _divergence(objective, p / p.sum(), q / q.sum()), n + 1
    return total, float(n)


def _divergence(objective: Any, p: Tensor, q: Tensor) -> Tensor:
    if objective.divergence == "jsd":
        b = objective.beta
        m = b * p + (1 - b) * q
        return sum(b * p[v] * (p[v] / m[v]).log() + (1 - b) * q[v] * (q[v] / m[v]).log() for v in range(len(p)))  # type: ignore[return-value]
    if objective.divergence == "reverse":
        return sum(q[v] * (q[v] / p[v]).log() for v in range(len(p)))  # type: ignore[return-value]
    return sum(p[v] * (p[v] / q[v]).log() for v in range(len(p)))  # type: ignore[return-value]


def start(examples: Sequence[Any], outputs: int) -> float:
    return 0.0


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    z, y = (3 * torch.randn(7, VOCABULARY, generator=g, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), y, torch.zeros(7, dtype=torch.long)


def oracle_loops() -> None:
    """Every divergence and a temperature, value and gradient on the logits."""
    z, y, target = _logits()
    for changes in ({}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}, {"temperature": 2.5}):
        objective = replace(catalog.load("objectives", _NAME).example(), **changes)
        (found,) = objective.distance(z, y, target)
        t = objective.temperature
        wanted = t**2 * torch.stack([
            _divergence(objective, (b / t).softmax(-1), (a / t).softmax(-1)) for a, b in zip(z, y, strict=True)
        ])  # fmt: skip
        close(found.detach(), wanted.detach(), f"loss with {changes}")
        mine, theirs = (torch.autograd.grad(x.sum(), z)[0] for x in (found, wanted))
        close(mine, theirs, f"gradient with {changes}")


def oracle_trl() -> None:
    """trl's generalised divergence, whose beta weights the same side; its limits 0 and 1 are the two plain ones."""
    from trl.experimental.gkd import GKDTrainer

    z, y, target = _logits()
    cases: tuple[tuple[dict[str, Any], float], ...] = (
        ({"divergence": "forward"}, 0.0), ({"divergence": "reverse"}, 1.0), ({"divergence": "jsd", "beta": 0.3}, 0.3),
    )  # fmt: skip
    for changes, beta in cases:
        objective = replace(catalog.load("objectives", _NAME).example(), **changes)
        (found,) = objective.distance(z, y, target)
        wanted = GKDTrainer.generalized_jsd_loss(z[None], y[None], beta=beta, reduction="sum")
        close(found.sum().detach(), wanted.detach(), f"loss with {changes} and trl's")
        if not math.isfinite(float(wanted.detach())):
            raise AssertionError("trl's loss is not finite")
