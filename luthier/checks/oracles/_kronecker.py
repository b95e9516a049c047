"""Adapters as dense numpy networks in float64, hooked onto a plain base that has the trained norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from luthier.checks._compare import close, differ, require
from luthier.checks.oracles._tuners import tensors_by_target, trained, worlds

Arrays = dict[str, np.ndarray]
Matrix = Callable[[Arrays, str, Arrays], np.ndarray]


def dense_adapters(tuner: Any, matrix: Matrix) -> None:
    """y + gelu(y W_d + b_d) W_u + b_u with W = `matrix(tensors of the adapter, "down" or "up", shared tensors)`."""
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        norms = _norms(model)
        require(bool(norms), f"{world.label}: no norm was trained")
        for name, value in norms.items():
            plain.get_parameter(name).data.copy_(value)
        base = world.said(plain)
        parts = {n: {k: v.numpy() for k, v in t.items()} for n, t in tensors_by_target(model).items()}
        shared = {k: v for tensors in parts.values() for k, v in tensors.items() if k.startswith("shared.")}
        for name, arrays in parts.items():
            W = {p: matrix(arrays, p, shared) for p in ("down", "up")}
            plain.get_submodule(name).register_forward_hook(_hook(W, arrays))
        differ(world.said(model), base, f"{world.label}: trained model and base with its norms")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def _norms(model: nn.Module) -> dict[str, Tensor]:
    inner = model.get_base_model()  # type: ignore[operator]
    mark = ".modules_to_save.default"
    return {n.replace(mark, ""): p.detach() for n, p in inner.named_parameters() if mark in n}


def kron(A: np.ndarray, B: list[np.ndarray]) -> np.ndarray:
    return sum(np.kron(A[i], B[i]) for i in range(len(B)))  # type: ignore[return-value]


def _hook(W: dict[str, np.ndarray], b: Arrays) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def after(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        x = y.detach().double().numpy()
        h = x @ W["down"] + b["down.bias"]
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
        return torch.from_numpy(x + h @ W["up"] + b["up.bias"]).to(y.dtype)

    return after
