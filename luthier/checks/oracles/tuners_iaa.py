"""Both wirings and every inside form as numpy networks in float64, hooked onto a plain base."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from luthier.checks._compare import close, differ
from luthier.checks._models import World
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds
from luthier.core.anatomy import anatomy

FORMS = ("lora", "sequential", "parallel")


def oracle_aside() -> None:
    for inside in FORMS:
        tuner = method(__name__, inside=inside)
        for world in worlds(tuner):
            _compare(tuner, world)


def oracle_ladder() -> None:
    for detach in (False, True):
        tuner = method(__name__, inside="none", wiring="ladder", detach=detach)
        for world in worlds(tuner):
            _compare(tuner, world)


def _compare(tuner: Any, world: World) -> None:
    model, plain = trained(tuner, world), world.base()
    tensors = {n: {k: v.numpy() for k, v in t.items()} for n, t in tensors_by_target(model).items()}
    body = anatomy(plain)
    for layer in body.layers:
        for last, first in (("o", "q"), ("down", "up")):
            name = layer.matrix(last).module  # type: ignore[union-attr]
            if name in tensors:
                _sub_layer(plain, name, layer.matrix(first).module, tensors[name], tuner.inside)  # type: ignore[union-attr]
    if tuner.wiring == "ladder":
        for stack in {layer.stack for layer in body.layers}:
            blocks = [layer.name for layer in body.layers if layer.stack == stack]
            _ladder(plain, blocks, [tensors[b] for b in blocks])
    label = f"{world.label}, {tuner.wiring}, {tuner.inside}"
    differ(world.said(model), world.said(world.base()), f"{label}: trained model and base")
    close(world.said(plain), world.said(model), f"{label}: numpy and trained model")


def _net(x: np.ndarray, t: dict[str, np.ndarray], part: str, linear: bool = False) -> np.ndarray:
    h = x @ t[f"{part}.down.weight"].T + t.get(f"{part}.down.bias", 0.0)
    return (h if linear else h * 0.5 * (1 + erf(h / np.sqrt(2)))) @ t[f"{part}.up.weight"].T + t.get(
        f"{part}.up.bias", 0.0
    )


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def _sub_layer(plain: nn.Module, name: str, first: str, t: dict[str, np.ndarray], inside: str) -> None:
    seen: dict[str, np.ndarray] = {}
    plain.get_submodule(first).register_forward_pre_hook(lambda m, args: seen.update(x=_array(args[0])))

    def after(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        f, z = _array(y), _array(args[0])
        out = f + _net(f if inside == "sequential" else z, t, "inside", inside == "lora") + _net(seen["x"], t, "aside")
        return torch.from_numpy(out).to(y.dtype)

    plain.get_submodule(name).register_forward_hook(after)


def _ladder(plain: nn.Module, blocks: list[str], tensors: list[dict[str, np.ndarray]]) -> None:
    """The blocks of a stack run untouched; the whole ladder is climbed after the last."""
    states: dict[int, np.ndarray] = {}

    def after(i: int, out: Any) -> Any:
        y = out[0] if isinstance(out, tuple) else out
        states[i] = _array(y)
        if i < len(blocks) - 1:
            return None
        a = np.zeros_like(states[0])
        for k, t in enumerate(tensors):
            h = states[k]
            normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
            a = a + _net(normed + a, t, "aside")
        y = torch.from_numpy(states[i] + a).to(y.dtype)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    for i, name in enumerate(blocks):
        plain.get_submodule(name).register_forward_hook(lambda m, args, out, i=i: after(i, out))
