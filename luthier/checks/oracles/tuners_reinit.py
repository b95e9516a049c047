"""Blocks drawn again by plain torch from the same generator, then a bare loop over all tensors: the same weights."""

from __future__ import annotations

import torch
from torch import nn

from luthier.checks import tuners
from luthier.checks._compare import require, same
from luthier.checks._models import WORLDS, World
from luthier.checks.oracles._tuners import bare_loop, method

TOP = {
    "llama": ["model.layers.1"],
    "bert": ["bert.encoder.layer.1"],
    "bert-classifier": ["bert.encoder.layer.1", "bert.pooler"],
}


def drawn(world: World, seed: int) -> nn.Module:
    """The base with new top blocks: matrices N(0, 0.2^2) in the order of the modules, biases 0, norms 1 and 0."""
    model = world.base()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in (m for name in TOP[world.architecture] for m in model.get_submodule(name).modules()):
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, model.config.initializer_range)
            elif type(module).__name__.endswith("Norm"):
                module.get_parameter("weight").fill_(1.0)
            bias = module._parameters.get("bias")
            if bias is not None:
                bias.zero_()
    return model


def oracle_drawn_by_hand() -> None:
    tuner = method(__name__)
    for world in (w for w in WORLDS if w.architecture in TOP):
        for seed in (0, 5):
            found = tuners.wrapped(tuner, world, seed).state_dict()
            for name, tensor in drawn(world, seed).state_dict().items():
                same(found[name], tensor, f"{world.label}: {name}")


def oracle_bare_loop() -> None:
    """From there on it is full fine-tuning."""
    for world in (w for w in WORLDS if w.architecture in TOP):
        start = drawn(world, 0)
        names = {n for n, _ in start.named_parameters()}
        require(bool(names), "no parameters")
        bare_loop(method(__name__), world, names, start=start)
