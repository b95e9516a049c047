"""FIRST against a float64 loop over positions and the k tokens, for every calibration and support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import VOCABULARY
from luthier.checks.oracles.objectives_distill import scored
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        for log_q, log_p in scored((policy, reference), e):
            p = log_p.detach().exp()
            ids = sorted(range(len(p)), key=lambda v: -float(p[v]))[: objective.k]
            total, n = total + _loss(objective, log_q.exp(), [float(p[v]) for v in ids], ids), n + 1
    return total, float(n)


def _calibrated(objective: Any, P: list[float]) -> list[float]:
    """P' as plain numbers."""
    m, k, c = sum(P), len(P), objective.c
    if objective.calibration == "smoothing":
        largest = max(range(k), key=lambda j: P[j])
        d = min(c, 0.99 * (P[largest] - sorted(P)[-2]) * (k - 1) / k)
        return [x - d if j == largest else x + d / (k - 1) for j, x in enumerate(P)]
    if objective.calibration == "none":
        return P
    power = torch.tensor(P, dtype=torch.float64)
    heat = power ** (1 / c) if objective.calibration == "temperature" else torch.exp(power / c)
    return [m * float(h / heat.sum()) for h in heat]


def _loss(objective: Any, q: Tensor, P: list[float], ids: list[int]) -> Tensor:
    made, r = _calibrated(objective, P), 1 - sum(P)
    chosen = [q[v] for v in ids]
    if objective.support == "tail":
        total = r * (torch.log(torch.tensor(r, dtype=torch.float64)) - torch.log(1 - torch.stack(chosen).sum()))
    else:
        total, made = torch.zeros((), dtype=torch.float64), [x / sum(made) for x in made]
        if objective.support == "softmax":
            chosen = [torch.exp(x / objective.c_student) for x in chosen]
        chosen = [x / torch.stack(chosen).sum() for x in chosen]
    for x, y in zip(made, chosen, strict=True):
        total = total + x * (torch.log(torch.tensor(x, dtype=torch.float64)) - torch.log(y))
    return total


def start(examples: Sequence[Any], outputs: int) -> float:
    return 0.0


def oracle_all_options() -> None:
    """Every calibration with every support, value and gradient on the logits."""
    g = torch.Generator().manual_seed(5)
    z, y = (2 * torch.randn(6, VOCABULARY, generator=g, dtype=torch.float64) for _ in range(2))
    z.requires_grad_()
    told = (("none", 1.0), ("smoothing", 0.05), ("smoothing", 0.9), ("temperature", 2.0), ("probabilities", 0.3))
    for (calibration, c), support in product(told, ("tail", "renorm", "softmax")):
        changes = {"calibration": calibration, "c": c, "support": support, "c_student": 0.4}
        objective = replace(catalog.load("objectives", _NAME).example(), **changes)
        top = y.log_softmax(-1).topk(objective.k)
        (found,) = objective.distance(z, torch.zeros(6, dtype=torch.long), top.indices, top.values)
        wanted = torch.stack([
            _loss(objective, q, p.exp().tolist(), ids.tolist())
            for q, p, ids in zip(z.softmax(-1), top.values, top.indices, strict=True)
        ])  # fmt: skip
        close(found.detach(), wanted.detach(), f"loss with {changes}")
        mine, theirs = (torch.autograd.grad(x.sum(), z)[0] for x in (found, wanted))
        close(mine, theirs, f"gradient with {changes}")
