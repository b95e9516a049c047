"""IFT against a float64 loop that reads mixed embeddings one sequence at a time and adds the weights up term by term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import texts
from luthier.checks.objectives import Plain, World, computed, gradients
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def _losses(objective: Any, e: Any, policy: Any, mix: float) -> list[Tensor]:
    """- log pi of each counted token, read after mixed embeddings."""
    said = policy.logp(e.ids).detach()
    table = policy.model.get_input_embeddings().weight.detach()
    read = []
    for i, token in enumerate(e.ids):
        own = table[token]
        if i > 0 and e.counts[i]:
            ranked = sorted(range(said.shape[1]), key=lambda v: -float(said[i - 1, v]))
            own = (1 - mix) * own + mix * table[ranked[objective.rank - 1]]
        read.append(own)
    logp = policy.model(inputs_embeds=torch.stack(read)[None]).logits[0].log_softmax(-1)
    return [-logp[t - 1, e.ids[t]] for t in range(1, len(e.ids)) if e.counts[t]]


def _weights(objective: Any, losses: list[Tensor]) -> list[Tensor]:
    n = len(losses)
    one = torch.ones((), dtype=torch.float64)
    terms = {"loss": [x / n for x in losses], "logps": losses, "mask": [one] * n}[objective.source]
    W = []
    for t in range(n):
        if objective.side == "left":
            W.append(sum(objective.decay ** (k - t) * terms[k] for k in range(t, n)))
        else:
            W.append(1 / sum(objective.decay ** (t - k) * terms[k] for k in range(t + 1)))
    f = {"L1": lambda x: x, "L2": lambda x: x * x, "softmax": torch.exp, "log": lambda x: torch.log(1 + x)}[
        objective.norm
    ]
    values = [f(x) for x in W]
    w = [n * x / sum(values) for x in values]
    return [x.detach() for x in w] if objective.detach_weights else w


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e, mix in zip(examples, batch.extras["mix"].tolist()):
        losses = _losses(objective, e, policy, mix)
        if losses:
            weights = _weights(objective, losses)
            total, n = total + sum(w * x for w, x in zip(weights, losses)) / len(losses), n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def oracle_options() -> None:
    """Every option by itself, value and gradient."""
    world, objective = World("texts", "gpt2", texts()), catalog.load("objectives", _NAME).example()
    model = world.model().double()
    told: list[dict[str, Any]] = [
        {"source": s, "side": side, "norm": n}
        for s in ("loss", "logps", "mask") for side in ("left", "right") for n in ("L1", "L2", "softmax", "log")
    ]  # fmt: skip
    told += [{"mix": 1.0}, {"rank": 3}, {"detach_weights": True}, {"decay": 0.0}, {"decay": 1.0}, {"mix": 0.0}]
    for options in told:
        method = replace(objective, **options)
        batch = method.view(world._collate(list(world.examples), "right"), 0, 10, np.random.default_rng(0))
        found, (wanted, n) = computed(method, model, batch), equation(method, world.examples, Plain(model), None, batch)
        close(found.sum.detach() / found.weight, (wanted / n).detach(), f"loss with {options}")
        mine, theirs = gradients(found.sum, model), gradients(wanted, model)
        for name in ("transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"):
            close(mine[name], theirs[name], f"gradient of {name} with {options}")
