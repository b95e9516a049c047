"""Attention head by head in float64 numpy, with what stands beside it added before the heads are mixed."""

from __future__ import annotations

from luthier.checks._compare import close, differ
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        heads = {
            n: dense.plain_sum(t["keys"].numpy(), t["values"].numpy(), tuner.act, tuner.scale)
            for n, t in tensors_by_target(model).items()
        }
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        said = world.said(dense.with_attention(plain, heads, scaled_query=False))
        close(said, world.said(model), f"{world.label}: numpy and trained model")
