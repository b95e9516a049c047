"""The mask by sorting all differences, the gradient of its scores by autograd in float64, and the two ends."""

from __future__ import annotations

import re

import numpy as np
import torch

from luthier.checks._compare import close, require, same
from luthier.checks.edits import World, worlds
from luthier.core import catalog
from luthier.core.anatomy import anatomy

BODY = {"llama": r"layers\.\d", "gpt2": r"\.h\.\d", "bert": r"encoder\.layer\.\d", "t5": r"block\.\d"}


def _cls() -> type:
    return catalog.load("edits", __name__.split("edits_")[-1])


def _body(world: World, state: dict[str, torch.Tensor]) -> list[str]:
    return [n for n in state if re.search(BODY[world.label], n)]


def oracle_base_patch() -> None:
    """The floor of the share, the largest of all together, and the rest is the base to the last bit."""
    for world in worlds(_cls()()):
        tuned, base = world.states()
        names = _body(world, base)
        for share in (0.01, 0.3):
            out = _cls()(share=share, outside="base").apply([tuned, base], world.model())
            moved = np.concatenate([(tuned[n] - base[n]).abs().numpy().ravel() for n in names])
            chosen = np.concatenate([(out[n] == tuned[n]).numpy().ravel() for n in names])
            stays = np.concatenate([(out[n] == base[n]).numpy().ravel() for n in names])
            require(bool((chosen | stays).all()), "a number is neither the tuned nor the base one")
            require(int(chosen.sum()) == int(share * moved.size + 1e-6), f"{chosen.sum()} entries at share {share}")
            require(moved[chosen].min() >= moved[~chosen].max(), "a smaller difference was taken before a larger one")
            for name in set(base) - set(names):
                same(out[name], base[name], f"{world.label}: {name}, which is outside the body")


def oracle_ends() -> None:
    for world in worlds(_cls()()):
        states = world.states()
        for share, outside, wanted in ((1.0, "tuned", states[0]), (0.0, "base", states[1])):
            for name, tensor in _cls()(share=share, outside=outside).apply(states, world.model()).items():
                same(tensor, wanted[name], f"{world.label}: {name} at share {share}")


def oracle_gradient() -> None:
    """dL/dS by the file's formula against autograd through the relaxed graft."""
    import importlib

    module = importlib.import_module(_cls().__module__)
    for world in [w for w in worlds(_cls()()) if w.label in ("llama", "gpt2")]:
        tuned, base = ({n: t.double() if t.is_floating_point() else t for n, t in s.items()} for s in world.states())
        model = world.model().double()
        names = [n for n, _ in model.named_parameters() if n in set(_body(world, base))]
        generator = torch.Generator().manual_seed(1)
        patch = {n: torch.rand(base[n].shape, generator=generator) < 0.3 for n in names}
        scores = {
            n: torch.rand(base[n].shape, generator=generator, dtype=torch.float64).requires_grad_() for n in names
        }
        delta = {n: tuned[n] - base[n] for n in names}
        bias = 1.5
        relaxed = {
            n: base[n] + (patch[n] + (1 - 2 * patch[n].double()) * torch.sigmoid(scores[n] - bias)) * delta[n]
            for n in names
        }
        ids = torch.randint(5, 90, (3, 12), generator=generator)

        def loss(
            weights: dict[str, torch.Tensor], ids: torch.Tensor = ids, model: torch.nn.Module = model
        ) -> torch.Tensor:
            logits = torch.func.functional_call(model, weights, (), {"input_ids": ids}).logits
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

        loss(relaxed).backward()
        leaves = {n: w.detach().requires_grad_() for n, w in relaxed.items()}
        loss(leaves).backward()
        slopes = module.slope(scores, patch, delta, bias)
        for name in names:
            wanted, inner = scores[name].grad, leaves[name].grad
            assert wanted is not None and inner is not None
            close(slopes[name] * inner, wanted, f"{world.label}: gradient of the scores of {name}")


def oracle_location_and_overlap() -> None:
    """Shares by layer and by kind add up to one and are those counted by hand; a graft lies in itself whole."""
    import importlib

    module = importlib.import_module(_cls().__module__)
    world = worlds(_cls()())[0]
    tuned, base = world.states()
    masks = {n: (tuned[n] - base[n]).abs() > 0.08 for n in _body(world, base)}
    told = module.location(masks, anatomy(world.model()))
    total = sum(int(m.sum()) for m in masks.values())
    for part in ("layer", "kind"):
        require(abs(sum(told[part].values()) - 1) < 1e-9, f"shares by {part} add up to {sum(told[part].values())}")
    values = sum(int(m.sum()) for n, m in masks.items() if "v_proj" in n)
    require(abs(told["kind"]["v"] - values / total) < 1e-9, "share of the values")
    first = sum(int(m.sum()) for n, m in masks.items() if "layers.0" in n)
    require(abs(told["layer"]["decoder 0"] - first / total) < 1e-9, "share of the first layer")
    other = {n: m & (tuned[n] > base[n]) for n, m in masks.items()}
    require(module.overlap(masks, masks) == 1 == module.overlap(masks, other), "a graft does not lie in itself")
    both = sum(int(m.sum()) for m in other.values()) / total
    require(abs(module.overlap(other, masks) - both) < 1e-9, "overlap the other way round")
    for name, mask in module.union(other, masks).items():
        same(mask, masks[name], f"union at {name}")
