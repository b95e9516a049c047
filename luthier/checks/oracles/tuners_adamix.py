"""The mean of the experts in numpy, float64; and every training pass is one of the M x M networks, each about as often."""

from __future__ import annotations

import random

import torch

from luthier.checks import tuners
from luthier.checks._compare import close, differ, require
from luthier.checks._models import WORLDS
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_mean_network() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        for name, tensors in tensors_by_target(model).items():
            mean = {
                f"{half}.{k}": tensors[f"{half}.{k}"].mean(0) for half in ("down", "up") for k in ("weight", "bias")
            }
            dense.after(plain, name, dense.network(mean, "gelu"), 1.0)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def oracle_routes() -> None:
    """A step's draw: one pair (i, j) a site, uniform over steps, and what the part then computes is that pair's network."""
    tuner, world = method(__name__), WORLDS[0]
    model = trained(tuner, world).double().train()
    for parameter in tuners.trainable(model).values():
        parameter.data.normal_()  # experts that no step drew would be alike
    name, tensors = next(iter(tensors_by_target(model).items()))
    part = model.get_base_model().get_submodule(name).parts["default"]
    y = torch.randn(5, tensors["down.weight"].shape[2], dtype=torch.float64)
    ways = {}
    for i in range(tuner.experts):
        for j in range(tuner.experts):
            pair = {f"{h}.{k}": tensors[f"{h}.{k}"][n] for h, n in (("down", i), ("up", j)) for k in ("weight", "bias")}
            ways[i, j] = y + dense.network(pair, "gelu")(y)
    counts = dict.fromkeys(ways, 0)
    for step in range(450):
        tuner.before_step(model, random.Random(step))
        said = part(y, y)
        near = min(ways, key=lambda w: float((ways[w] - said).abs().max().detach()))
        close(said, ways[near], "one pair of experts")
        counts[near] += 1
    expected = 450 / len(ways)
    chi2 = sum((c - expected) ** 2 / expected for c in counts.values())
    require(chi2 < 30.0, f"pairs are drawn evenly, not {counts}")
