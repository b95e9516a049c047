"""The side network in numpy, float64, climbed after the plain model's last block ran; and no way back into the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from luthier.checks import tuners
from luthier.checks._compare import close, differ, require
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds
from luthier.core.anatomy import anatomy

Tensors = dict[str, np.ndarray]


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        tensors = {n: {k: v.numpy() for k, v in t.items()} for n, t in tensors_by_target(model).items()}
        blocks = [layer.name for layer in anatomy(plain).layers if layer.stack == anatomy(plain).layers[-1].stack]
        require(list(tensors) == blocks, f"{world.label}: a part on each block of the last stack")
        _beside(plain, [tensors[b] for b in blocks], blocks, tuner.temperature)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def oracle_no_way_back() -> None:
    """No output of a block before the last needs a gradient, even where the embeddings do; yet every part gets one."""
    tuner = method(__name__)
    for world in worlds(tuner):
        model = trained(tuner, world).train()
        model.enable_input_require_grads()
        read: list[Tensor] = []
        table = model.get_base_model().get_input_embeddings().weight
        for module in (m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is table):
            module.register_forward_hook(partial(_keep, read))
        with torch.enable_grad():
            world.loss(model).backward()
        asked = bool(read) and all(y.requires_grad for y in read)
        require(asked and all(y.grad is None for y in read), f"{world.label}: a gradient reached the input")
        idle = [n for n, p in tuners.trainable(model).items() if p.grad is None]
        require(not idle, f"{world.label}: no gradient for {idle[:1]}")


def _keep(read: list[Tensor], module: nn.Module, args: Any, y: Tensor) -> None:
    read.append(y)


def _beside(plain: nn.Module, parts: list[Tensors], blocks: list[str], temperature: float) -> None:
    states: list[np.ndarray] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        states[:] = [_array(args[0] if args else kwargs["hidden_states"])]

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        y = out[0] if isinstance(out, tuple) else out
        states.append(_array(y))
        if len(states) <= len(parts):
            return None
        g = _map(_norm(states[0]), parts[0], "enter")
        for h, t in zip(states[1:], parts, strict=True):
            m = 1 / (1 + np.exp(-t["gate"] / temperature))
            u = m * _map(_norm(h), t, "read") + (1 - m) * g
            inner = _map(u, t, "block.down")
            g = u + _map(inner * 0.5 * (1 + erf(inner / np.sqrt(2))), t, "block.up")
        y = torch.from_numpy(states[-1] + _map(g, parts[-1], "leave")).to(y.dtype)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    plain.get_submodule(blocks[0]).register_forward_pre_hook(before, with_kwargs=True)
    for name in blocks:
        plain.get_submodule(name).register_forward_hook(after)


def _map(x: np.ndarray, t: Tensors, name: str) -> np.ndarray:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def _norm(h: np.ndarray) -> np.ndarray:
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()
