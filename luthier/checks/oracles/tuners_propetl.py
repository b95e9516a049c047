"""Dense numpy networks of the one adapter through masks made by a plain sort; the straight-through gradient."""

from __future__ import annotations

from luthier.checks._compare import close, differ, require
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._masks import kept, straight_through
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        parts = tensors_by_target(model)
        shared = {k.removeprefix("shared."): v for t in parts.values() for k, v in t.items() if k.startswith("shared.")}
        seen = []
        for name, tensors in parts.items():
            masks = {half: kept(tensors[f"masks.scores.{half}"], tuner.keep) for half in ("down", "up")}
            network = {**shared, **{f"{h}.weight": shared[f"{h}.weight"] * m for h, m in masks.items()}}
            dense.after(plain, name, dense.network(network, "gelu"), 1.0)
            seen.append(masks["down"])
        require(any(bool((seen[0] != m).any()) for m in seen[1:]), f"{world.label}: every layer has the same mask")
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def oracle_straight_through() -> None:
    for keep in (0.3, 0.5, 1.0):
        straight_through(keep)


def oracle_shared_whole() -> None:
    """At keep 1 all layers use the one adapter as it is, and nothing else is trained."""
    tuner = method(__name__, keep=1.0)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        require(len(names) == 4, f"{world.label}: {len(names)} tensors are trained")
        parts = tensors_by_target(model)
        shared = {k.removeprefix("shared."): v for t in parts.values() for k, v in t.items()}
        for name in tuner.target_modules(world.base()):
            dense.after(plain, name, dense.network(shared, "gelu"), 1.0)
        close(world.said(plain), world.said(model), f"{world.label}: one adapter in numpy and the trained model")
