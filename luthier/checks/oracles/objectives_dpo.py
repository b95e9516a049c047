"""DPO against a float64 loop, and every divergence and label smoothing against the losses of trl's trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """log(1 + exp(-beta * margin)) of each pair; their number."""

    def loss(p: _pairs.Pair) -> Tensor:
        return torch.log1p(torch.exp(-objective.beta * ((p.chosen - p.ref_chosen) - (p.rejected - p.ref_rejected))))

    return _pairs.summed(loss, examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2)


def oracle_trl() -> None:
    """All options; label smoothing is in trl's `aot` loss, which on a single pair is DPO's."""
    world = _pairs.pair_world()
    objective, examples = catalog.load("objectives", _NAME).example(), list(world.examples)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"divergence": d}, {"f_divergence_type": d}) for d in ("reverse_kl", "forward_kl", "js_divergence")
    ]
    cases += [
        ({"divergence": "alpha_divergence", "alpha": a},
         {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": a}) for a in (0.3, 1.0, 2.0)
    ]  # fmt: skip
    for mine, theirs in cases:
        wanted = _pairs.trl_dpo(examples, world, beta=objective.beta, **theirs)
        close(_pairs.ours(replace(objective, **mine), examples, world), wanted, f"loss and trl's with {mine}")
    wanted = _pairs.trl_dpo(examples[:1], world, beta=objective.beta, loss_type=["aot"], label_smoothing=0.2)
    close(_pairs.ours(replace(objective, label_smoothing=0.2), examples[:1], world), wanted, "smoothed loss and trl's")
