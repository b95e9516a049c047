"""TDPO against a float64 loop over positions and vocabulary, both variants, and against its gradient on the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD
from luthier.checks.objectives import Plain
from luthier.checks.oracles import _pairs
from luthier.core import catalog
from luthier.core.batch import collate_groups
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def _distance(policy: Any, reference: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Sum over answer positions and vocabulary of rho (log rho - log pi)."""
    ids = [*prompt, *answer]
    log_pi, log_rho = policy.logp(ids), reference.logp(ids).detach()
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(prompt) - 1, len(ids) - 1):
        for v in range(log_pi.shape[1]):
            total = total + torch.exp(log_rho[t, v]) * (log_rho[t, v] - log_pi[t, v])
    return total


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    for e, p in zip(examples, _pairs.pairs(examples, policy, reference)):
        u = (p.chosen - p.ref_chosen) - (p.rejected - p.ref_rejected)
        D_w, D_l = (_distance(policy, reference, e.prompt, a) for a in e.answers)
        if objective.variant == "tdpo1":
            margin = u - (D_l - D_w)
        else:
            margin = u - objective.alpha * (D_l - D_w.detach())
        total = total + torch.log1p(torch.exp(-objective.beta * margin))
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2)


def oracle_tdpo1() -> None:
    """The other variant, value and gradient of the head."""
    world = _pairs.pair_world(architecture="gpt2")
    model, other = world.model().double(), world.model(reference=True).double()
    objective = replace(catalog.load("objectives", _NAME).example(), variant="tdpo1")
    loss = objective.compute(Scorer(model, beside=other), collate_groups(list(world.examples), PAD))
    wanted, n = equation(objective, world.examples, Plain(model), Plain(other), None)
    close(loss.sum.detach() / loss.weight, wanted.detach() / n, "loss and equation")
    for name in ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"):
        weight = model.get_parameter(name)
        mine, theirs = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss.sum, wanted))
        close(mine, theirs, f"gradient of {name}")
