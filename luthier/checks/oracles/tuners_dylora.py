"""The dense formula of the paper, in float64; and its ranks are nested: serving b uses the first b rows of one training."""

from __future__ import annotations

import torch

from luthier.checks._compare import close, differ
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import dense, method, outputs_by_inputs, put, tensors_by_target, trained


def oracle_dense_formula() -> None:
    tuner = method(__name__)
    dense(tuner, lambda W, t: W + tuner.alpha / tuner.r * t["B"] @ t["A"])


def oracle_nested_ranks() -> None:
    """For every b the model that serves rank b equals the dense formula with the first b columns and rows."""
    tuner, world = method(__name__), WORLDS[0]
    model = trained(tuner, world)
    said = []
    for b in range(1, tuner.r + 1):
        for module in model.modules():
            if hasattr(module, "serve"):
                module.serve = b
        plain = world.base()
        for name, t in tensors_by_target(model).items():
            target = plain.get_submodule(name)
            put(target, outputs_by_inputs(target) + tuner.alpha / b * t["B"][:, :b] @ t["A"][:b])
        said.append(world.said(model))
        close(world.said(plain), said[-1], f"dense formula at rank {b}")
    differ(said[0], said[-1], "ranks 1 and r")


def oracle_training_rank() -> None:
    """In training mode b is uniform on 1..r: a linear map of one target is one of the r truncations, each about as often."""
    tuner, world = method(__name__), WORLDS[0]
    model = trained(tuner, world).train()
    part = next(m for m in model.modules() if hasattr(m, "serve"))
    x = torch.randn(3, part.A.shape[1])
    ways = [tuner.alpha / b * x @ part.A[:b].T @ part.B[:, :b].T for b in range(1, tuner.r + 1)]
    counts = [0] * tuner.r
    for _ in range(400):
        y = part.delta(x)
        counts[min(range(tuner.r), key=lambda i: float((ways[i] - y).abs().max()))] += 1
        close(y, min(ways, key=lambda w: float((w - y).abs().max())), "a truncation")
    expected = 400 / tuner.r
    chi2 = sum((c - expected) ** 2 / expected for c in counts)
    close(torch.tensor(float(chi2 < 30.0)), torch.tensor(1.0), f"uniform ranks, counts {counts}")
