"""What was drawn, put by hand around the matrices of a plain base in float64: the same answers after training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from luthier.checks._compare import close, differ, require
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_terms_by_hand() -> None:
    tuner = method(__name__)
    seen: set[str] = set()
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base().double()
        for name, tensors in tensors_by_target(model).items():
            seen |= {n.split(".")[-1] for n in tensors} | {"bottleneck" for n in tensors if "bottleneck" in n}
            plain.get_submodule(name).register_forward_hook(_after(tensors, tuner.scale))
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain).float(), world.said(model), f"{world.label}: terms by hand and trained model")
    require({"A", "B", "dW", "db", "bottleneck"} <= seen, f"the example draws only {sorted(seen)}")


def _after(tensors: dict[str, torch.Tensor], scale: float):  # type: ignore[no-untyped-def]
    held = {n.split("weights.")[-1]: t for n, t in tensors.items()}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        x = args[0]
        z = y
        if "A" in held:
            z = z + scale * torch.einsum("bti,ri,or->bto", x, held["A"], held["B"])
        if "dW" in held:
            z = z + torch.einsum("bti,oi->bto", x, held["dW"])
        if "db" in held:
            z = z + held["db"]
        down, up = (f"bottleneck.{i}" for i in (0, 2))
        if f"{down}.weight" in held:
            hidden = F.gelu(z @ held[f"{down}.weight"].T + held[f"{down}.bias"])
            z = z + hidden @ held[f"{up}.weight"].T + held[f"{up}.bias"]
        return z

    return hook


def oracle_units_are_whole_and_fit() -> None:
    """No unit is split, each half of the budget is kept, and nothing that was skipped fits in what is left."""
    for world in worlds(method(__name__)):
        for seed in range(10):
            tuner = method(__name__, seed=seed, budget=4000)
            inserted, own = tuner.candidates(world.base())
            drawn = tuner.drawn(world.base())
            for of in (inserted, own):
                taken = [u for u in of if u in drawn]
                left = 2000 - sum(of[u] for u in taken)
                skipped = [s for u, s in of.items() if u not in drawn]
                require(left >= 0 and (not skipped or left < min(skipped)), "the budget was not walked to its end")
            found = {n for n, p in tuner.wrap(world.base(), world.task).named_parameters() if p.requires_grad}
            pairs = [u for u in drawn if u[0] == "pair"]
            for letter in "AB":
                require(sum(n.split(".")[-1] == letter for n in found) == len(pairs), "a pair was split")
