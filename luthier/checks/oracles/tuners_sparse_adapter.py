"""The adapter as a dense network in numpy, and the scores from dense adapters that are hooked onto a plain base."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from luthier.checks import tuners
from luthier.checks._compare import close, differ, require
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import method, trained, worlds


def _parts(model: nn.Module) -> dict[str, Any]:
    """Name of each adapted module in the base to its part."""
    found = {}
    for name, module in model.get_base_model().named_modules():  # type: ignore[operator]
        if name.endswith("luthier_sparse_adapter_parts.default"):
            found[name.removesuffix(".luthier_sparse_adapter_parts.default")] = module
    return found


def _dense(values: Tensor, at: Tensor, rows: int, columns: int) -> np.ndarray:
    out = np.zeros(rows * columns)
    for place, value in zip(at.tolist(), values.tolist(), strict=True):
        out[place] = value
    return out.reshape(rows, columns)


def oracle_numpy() -> None:
    """y + s (gelu(y W_down + b) W_up + b) with dense matrices that hold the kept values at their places."""
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        for name, part in _parts(model).items():
            R, D = tuner.bottleneck, world.base().config.hidden_size
            arrays = (
                _dense(part.down.detach(), part.down_at, R, D), part.down_bias.detach().double().numpy(),
                _dense(part.up.detach(), part.up_at, D, R), part.up_bias.detach().double().numpy(),
            )  # fmt: skip
            plain.get_submodule(name).register_forward_hook(_hook(*arrays, tuner.scale))
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


def _hook(down, down_bias, up, up_bias, scale):  # type: ignore[no-untyped-def]
    def after(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = y.detach().double().numpy()
        h = x @ down.T + down_bias
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
        return torch.from_numpy(x + scale * (h @ up.T + up_bias)).to(y.dtype)

    return after


def oracle_scores() -> None:
    """snip |w g|, fisher mean g_row^2, grasp w (H g) by double backward: the same places are kept in every matrix."""
    for world in (w for w in WORLDS if w.architecture in ("llama", "bert-classifier")):
        for criterion in ("snip", "fisher", "grasp"):
            tuner = method(__name__, criterion=criterion, rows=99, std=0.1)
            model = tuners.wrapped(tuner, world)
            parts = _parts(model)
            dense = {n: [t.detach().clone().requires_grad_() for t in p.trial] for n, p in parts.items()}
            run = tuners.loop(tuner, world, model, 1)
            run.fit()
            plain = world.base(attn_implementation="eager")
            for name, (down, up) in dense.items():
                plain.get_submodule(name).register_forward_hook(
                    lambda m, a, y, d=down, u=up: y + torch.nn.functional.gelu(y @ d.T) @ u.T
                )
            for (name, part), wanted in zip(parts.items(), _scores(criterion, world, plain, dense), strict=True):
                for at, score in zip((part.down_at, part.up_at), wanted, strict=True):
                    best = set(np.argsort(-score.detach().numpy().ravel())[: len(at)].tolist())
                    hits = len(best & set(at.tolist())) / len(at)
                    require(hits > 0.97, f"{world.label}, {criterion}: {hits:.3f} of the places of {name} agree")


def _scores(criterion, world, plain, dense):  # type: ignore[no-untyped-def]
    leaves = [t for pair in dense.values() for t in pair]
    rows = [world.batch([e]) for e in world.examples]

    def loss(batch) -> Tensor:  # type: ignore[no-untyped-def]
        """From plain logits: the core's own loss is fused and has no second derivative."""
        target = batch.label if world.task == "classification" else batch.target
        return torch.nn.functional.cross_entropy(world.answers(plain, batch), target, reduction="sum")

    if criterion == "fisher":
        each = [torch.autograd.grad(loss(b), leaves) for b in rows]
        flat = [sum(g[i] ** 2 for g in each) for i in range(len(leaves))]
    else:
        mean: Any = sum(loss(b) for b in rows) / len(rows)
        g = torch.autograd.grad(mean, leaves, create_graph=True)
        if criterion == "snip":
            flat = [(w * x).abs() for w, x in zip(leaves, g, strict=True)]
        else:
            square: Any = sum((x * x.detach()).sum() for x in g)
            flat = [w * h for w, h in zip(leaves, torch.autograd.grad(square, leaves), strict=True)]
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]
