"""What oracles of tuners share: a trained model, its tensors by target, and dense float64 weights put into a plain base."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.checks import tuners
from luthier.checks._compare import close, differ, require
from luthier.checks._models import World
from luthier.core import catalog


def method(file_name: str, **options: Any) -> Any:
    """The tuner that an oracle file is about, by the file's own name."""
    cls = catalog.load("tuners", file_name.rsplit("tuners_", 1)[-1])
    found = cls.example()
    return type(found)(**{**vars(found), **options})


def trained(tuner: Any, world: World) -> Any:
    with torch.enable_grad():
        return tuners.moved(tuner, world)


def worlds(tuner: Any) -> list[World]:
    return [w for w in tuners.worlds(tuner) if w.task != "classification"]


def outputs_by_inputs(module: Any) -> Tensor:
    """A weight matrix as (outputs, inputs), float64."""
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight


def put(module: Any, weight: Tensor) -> None:
    with torch.no_grad():
        module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)


def dense(tuner: Any, formula: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> None:
    """The tuned model equals a plain base whose weights were computed by `formula(W, tensors of the target)`."""
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        parts = tensors_by_target(model)
        for name, tensors in parts.items():
            target = plain.get_submodule(name)
            put(target, formula(outputs_by_inputs(target), tensors))
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: dense formula and trained model")


def tensors_by_target(model: Any) -> dict[str, dict[str, Tensor]]:
    """Name of each adapted module in the base to its adapter's tensors, by the last telling parts of their names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.get_base_model().named_parameters():
        if not parameter.requires_grad or "original_module" in name or "modules_to_save" in name:
            continue
        parts = [p for p in name.split(".") if p not in ("default", "weight")]
        cut = next(i for i, p in enumerate(parts) if p.startswith(("lora_", "ia3_", "luthier_")))
        key = parts[-1] if parts[cut].startswith("luthier_") else parts[cut]
        if parts[cut].startswith("luthier_"):
            key = ".".join(name.split(".")[cut + 2 :])
        found.setdefault(".".join(parts[:cut]), {})[key] = parameter.detach().double()
    return found


def plain_steps(
    world: World, names: set[str], steps: int, rates: dict[str, float] | None = None, start: nn.Module | None = None,
    **settings: Any,
) -> nn.Module:  # fmt: skip
    """A bare PyTorch loop over one batch: AdamW on the named tensors, everything else never given to it.

    rates  factor of the learning rate by name;  start  the model to train, in place of the base
    """
    model = copy.deepcopy(start if start is not None else world.base()).train()
    scale = rates or {}
    groups = [
        {"params": [p], "lr": settings["lr"] * scale.get(n, 1.0)} for n, p in model.named_parameters() if n in names
    ]
    optimizer = torch.optim.AdamW(groups, **settings)
    batch = world.batch()
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = None
        world.loss(model, batch).backward()
        optimizer.step()
    return model.eval()


def bare_loop(
    tuner: Any, world: World, names: set[str], steps: int = 10, rates: dict[str, float] | None = None,
    start: nn.Module | None = None,
) -> None:  # fmt: skip
    """Ten steps of the core's loop against ten of a bare one, with weight decay: the same weights."""
    # eps above the noise: Adam turns rounding in gradients that are zero (a key's bias) into whole steps otherwise
    settings = {"lr": 0.003, "weight_decay": 0.1, "eps": 1e-4}
    model = tuners.wrapped(tuner, world)
    n = len(world.examples)
    tuners.loop(
        tuner, world, model, steps, per_device_train_batch_size=n, learning_rate=settings["lr"], max_grad_norm=0.0,
        adam_epsilon=settings["eps"],
    ).fit()  # fmt: skip
    wanted = plain_steps(world, names, steps, rates, start, **settings)
    before = start if start is not None else world.base()
    for name, parameter in wanted.named_parameters():
        gap = (model.get_parameter(name) - parameter).abs().max().item()
        moved = (parameter - before.get_parameter(name)).abs().max().item()
        if name not in names:
            require(gap == 0 and moved == 0, f"{world.label}: {name} is frozen, but moved")
        else:
            require(gap <= 0.005 * moved + 1e-6, f"{world.label}: {name} differs by {gap:.1e} after moving {moved:.1e}")
