"""The rescaling of the paper as dense weights, in float64: rows of keys and values, columns of the feed-forward output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from luthier.checks._compare import close, differ
from luthier.checks.oracles._tuners import method, outputs_by_inputs, put, tensors_by_target, trained, worlds
from luthier.core.anatomy import anatomy


def oracle_dense_formula() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        down = set(anatomy(plain).modules(("down",)))
        for name, tensors in tensors_by_target(model).items():
            vector: Tensor = tensors["ia3_l"].flatten()
            target: Any = plain.get_submodule(name)
            weight = outputs_by_inputs(target)
            put(target, weight * vector if name in down else weight * vector[:, None])
            if name not in down and getattr(target, "bias", None) is not None:
                target.bias.data = (target.bias.double() * vector).to(target.bias.dtype)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: dense formula and trained model")
