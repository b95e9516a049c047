"""Both halves by hand in float64: the gated sum of two attentions, and a network beside every feed-forward."""

from __future__ import annotations

from luthier.checks._compare import close, differ
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        heads = {n: dense.gated_prefix(*pair) for n, pair in dense.prefixes(model, plain).items()}
        networks = {n: t for n, t in tensors_by_target(model).items() if n not in heads}
        for name, tensors in networks.items():
            dense.beside_feed_forward(plain, name, dense.network(tensors, "relu"), tuner.scale)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        said = world.said(dense.with_attention(plain, heads, scaled_query=True))
        close(said, world.said(model), f"{world.label}: numpy and trained model")
