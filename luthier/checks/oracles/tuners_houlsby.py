"""A dense numpy network behind the last matrix of every block of a plain base, and the trained norms put into it."""

from __future__ import annotations

from torch import nn

from luthier.checks._compare import close, differ, require
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        for name, tensors in tensors_by_target(model).items():
            dense.after(plain, name, dense.network(tensors, tuner.act), 1.0)
        without = world.said(plain)
        put_norms(model, plain)
        differ(without, world.said(plain), f"{world.label}: with and without the trained norms")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def put_norms(model: nn.Module, plain: nn.Module) -> None:
    """The trained copies of norms, written over those of the base."""
    marker, norms = ".modules_to_save.default.", 0
    for name, parameter in model.get_base_model().named_parameters():  # type: ignore[operator]
        if marker in name:
            plain.get_parameter(name.replace(marker, ".")).data.copy_(parameter.data)
            norms += 1
    require(norms > 0, "the model trains no norms")
