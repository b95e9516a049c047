"""A dense numpy reference: the adapter's network applied to what each adapted module of the base gives."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from luthier.checks._compare import close, differ
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    """y + s (gelu(y W_down + b) W_up + b), in numpy, hooked onto a plain base."""
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        for name, tensors in tensors_by_target(model).items():
            arrays = {k: v.numpy() for k, v in tensors.items()}
            plain.get_submodule(name).register_forward_hook(_hook(arrays, tuner.scale))
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def _hook(arrays: dict[str, np.ndarray], scale: float):  # type: ignore[no-untyped-def]
    def after(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = y.detach().double().numpy()
        h = x @ arrays["down.weight"].T + arrays["down.bias"]
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
        x = x + scale * (h @ arrays["up.weight"].T + arrays["up.bias"])
        return torch.from_numpy(x).to(y.dtype)

    return after
