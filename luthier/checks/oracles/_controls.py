"""What oracles of controls share: rows of several labels in one batch, against one plain float64 base a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close, differ
from luthier.checks._models import World
from luthier.checks.oracles._tuners import tensors_by_target, trained, worlds
from luthier.core.logprobs import Scorer
from luthier.tuners._controls import choose_control

Said = Callable[[World, dict[str, dict[str, Tensor]], dict[str, float], Any], Tensor]
"""(world, tensors by target, weight of each label, one example) to its logits (1, T, V), from the equation."""


@torch.no_grad()
def mixed_rows(tuner: Any, said: Said) -> None:
    """Log-probabilities of a batch whose rows alternate between labels; then a mixture of labels, asked without a batch."""
    for world in (w for w in worlds(tuner) if w.kind == "decoder"):
        model = trained(tuner, world)
        for name, parameter in model.named_parameters():  # the battery's rows moved all controls alike
            if parameter.requires_grad:
                shift = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(name) + parameter.numel())
                )
                parameter += 0.3 * (1 + name.count("bad")) * shift
        tensors = tensors_by_target(model)
        labels = [tuner.labels[i % len(tuner.labels)] for i in range(len(world.examples))]
        rows = [replace(e, extras={tuner.by: n}) for e, n in zip(world.examples, labels, strict=True)]
        found = Scorer(model).token_logp(world.batch(rows))
        one_by_one = [(n, e) for n, e in zip(labels, world.examples, strict=True)]
        close(
            found,
            torch.cat([_logp(world, e, said(world, tensors, {n: 1.0}, e)) for n, e in one_by_one]),
            "mixed labels",
        )
        swapped = [tuner.labels[(tuner.labels.index(n) + 1) % len(tuner.labels)] for n in labels]
        other = [
            _logp(world, e, said(world, tensors, {n: 1.0}, e)) for n, e in zip(swapped, world.examples, strict=True)
        ]
        differ(found, torch.cat(other), "labels exchanged")
        weights = {tuner.labels[0]: 1.5, tuner.labels[1]: -0.5}
        choose_control(model, weights)
        for e in world.examples:
            inputs = world.batch([e]).inputs()
            close(model(**inputs).logits, said(world, tensors, weights, e), f"{world.label}: controls mixed")


def _logp(world: World, example: Any, logits: Tensor) -> Tensor:
    batch = world.batch([example])
    assert batch.source is not None and batch.target is not None
    return logits[0, batch.source].log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
