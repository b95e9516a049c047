"""The dense formula with masks made by a plain sort, in float64; the straight-through gradient."""

from __future__ import annotations

from luthier.checks._compare import close, differ
from luthier.checks.oracles._masks import kept, straight_through
from luthier.checks.oracles._tuners import method, outputs_by_inputs, put, tensors_by_target, trained, worlds


def oracle_dense_formula() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        parts = tensors_by_target(model)
        shared = {k.removeprefix("shared."): v for t in parts.values() for k, v in t.items() if k.startswith("shared.")}
        for name, tensors in parts.items():
            of = name.rpartition(".")[2]
            A, B = (shared[f"{m}.{of}"] * kept(tensors[f"masks.scores.{m}"], tuner.keep) for m in ("A", "B"))
            target = plain.get_submodule(name)
            put(target, outputs_by_inputs(target) + tuner.alpha / tuner.r * B @ A)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: dense formula and trained model")


def oracle_straight_through() -> None:
    straight_through(0.5)
