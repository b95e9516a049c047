"""A dense numpy network behind the last matrix of every feed-forward of a plain base."""

from __future__ import annotations

from luthier.checks._compare import close, differ
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds
from luthier.core.anatomy import anatomy


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        found = tensors_by_target(model)
        assert sorted(found) == sorted(anatomy(plain).modules(("down",)))
        for name, tensors in found.items():
            dense.after(plain, name, dense.network(tensors, tuner.act), 1.0)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")
