"""Constrained SFT against a float64 loop over tokens, both forms; at the start it is SFT, value and gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, texts
from luthier.checks.objectives import Plain
from luthier.core import catalog
from luthier.core.batch import SourceTargetExample, collate_text
from luthier.core.logprobs import Scorer

_NAME = "constrained_sft"


def _tokens(e: Any, model: Any) -> list[tuple[int, Tensor, int]]:
    """(place in its answer, log-probabilities (V,), token) of each token that counts."""
    if isinstance(e, SourceTargetExample):
        logp = model.decoder_logp(e.ids, [model.start, *e.target[:-1]])
        return [(t, logp[t], token) for t, token in enumerate(e.target)]
    logp, out, place = model.logp(e.ids), [], 0
    for t in range(1, len(e.ids)):
        place = place + 1 if e.counts[t] and e.counts[t - 1] and t > 1 else 0
        if e.counts[t]:
            out.append((place, logp[t - 1], e.ids[t]))
    return out


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        for (place, pi, token), (_, rho, _) in zip(_tokens(e, policy), _tokens(e, reference), strict=True):
            beta = objective.beta[place] if place < len(objective.beta) else objective.later
            rho = rho.detach()
            if objective.form == "kl":
                loss = -pi[token] + beta * sum(torch.exp(rho[v]) * (rho[v] - pi[v]) for v in range(len(pi)))
            elif beta == 0:
                loss = -pi[token]
            else:
                sigmoid = 1 / (1 + torch.exp(-beta * (pi[token] - rho[token])))
                loss = -2 / beta * (torch.log(sigmoid) + math.log(2)) - rho[token]
            total, n = total + loss, n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def _both(options: dict[str, Any]) -> None:
    model, other = model_of("llama").double(), model_of("llama").double()
    draw = torch.Generator().manual_seed(4)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    objective = replace(catalog.load("objectives", _NAME)(), **options)
    loss = objective.compute(Scorer(model, beside=other), collate_text(list(texts()), PAD))
    wanted, n = equation(objective, texts(), Plain(model), Plain(other), None)
    close(loss.sum.detach() / loss.weight, wanted.detach() / n, f"loss and equation, {options}")
    weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    mine, theirs = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss.sum, wanted))
    close(mine, theirs, f"gradient, {options}")


def oracle_forms() -> None:
    for options in ({}, {"form": "kl"}, {"beta": (0.0, 3.0), "later": 0.0}, {"beta": (), "later": 0.7}):
        _both(options)


def oracle_sft_at_the_start() -> None:
    model, other = model_of("llama").double(), model_of("llama").double()
    batch, weight = collate_text(list(texts()), PAD), model.get_parameter("model.layers.1.mlp.up_proj.weight")
    plain = catalog.load("objectives", "sft")().compute(Scorer(model), batch)
    (wanted,) = torch.autograd.grad(plain.sum, weight)
    for options in ({}, {"form": "kl"}):
        loss = replace(catalog.load("objectives", _NAME)(), **options).compute(Scorer(model, beside=other), batch)
        close(loss.sum.detach(), plain.sum.detach(), f"loss at the start, {options}")
        close(torch.autograd.grad(loss.sum, weight)[0], wanted, f"gradient at the start, {options}")
