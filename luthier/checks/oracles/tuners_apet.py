"""Dense masks by hand: a bare AdamW loop whose gradients and decay are masked, and full fine-tuning at N = everything."""

from __future__ import annotations

import copy
import random

import torch

from luthier.checks import tuners
from luthier.checks._compare import require
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import bare_loop, method


def oracle_dense_masks() -> None:
    """Eight steps of the core's loop equal an AdamW written out entry by entry, for entries in the set and only there."""
    lr, decay, eps, steps = 0.003, 0.1, 1e-4, 8
    for world in WORLDS[:2]:
        tuner = method(__name__, budget=700, seed=3)
        model = tuners.wrapped(tuner, world)
        tuners.loop(
            tuner, world, model, steps, per_device_train_batch_size=len(world.examples), learning_rate=lr,
            max_grad_norm=0.0, adam_epsilon=eps,
        ).fit()  # fmt: skip
        plain = copy.deepcopy(world.base()).train()
        masks = _masks(plain, 700, 3)
        moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in plain.named_parameters()}
        for step in range(1, steps + 1):
            plain.zero_grad()
            world.loss(plain, world.batch()).backward()
            with torch.no_grad():
                for name, parameter in plain.named_parameters():
                    grad = parameter.grad * masks[name]
                    m, v = moments[name]
                    m.mul_(0.9).add_(grad, alpha=0.1)
                    v.mul_(0.999).addcmul_(grad, grad, value=0.001)
                    update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + eps) + decay * parameter
                    parameter.sub_(lr * update * masks[name])
        for name, parameter in plain.named_parameters():
            found, before = model.get_parameter(name), world.base().get_parameter(name)
            require(torch.equal(found[~masks[name]], before[~masks[name]]), f"{name}: an entry outside the set moved")
            gap = (found - parameter).abs().max().item()
            moved = (parameter - before).abs().max().item()
            require(gap <= 0.005 * moved + 1e-6, f"{name} differs by {gap:.1e} after moving {moved:.1e}")


def _masks(model: torch.nn.Module, n: int, seed: int) -> dict[str, torch.Tensor]:
    """The set by a flat boolean vector over all tensors laid end to end."""
    tensors = list(model.named_parameters())
    flat = torch.zeros(sum(p.numel() for _, p in tensors), dtype=torch.bool)
    flat[random.Random(seed).sample(range(len(flat)), n)] = True
    parts = flat.split([p.numel() for _, p in tensors])
    return {name: part.view_as(p) for (name, p), part in zip(tensors, parts, strict=True)}


def oracle_everything_is_full() -> None:
    """N = all parameters is full fine-tuning, at both levels."""
    for world, level in zip(WORLDS[:2], ("scalars", "tensors"), strict=True):
        names = {n for n, _ in world.base().named_parameters()}
        total = sum(p.numel() for p in world.base().parameters())
        bare_loop(method(__name__, budget=total, level=level), world, names, steps=5)


def oracle_walk_over_tensors() -> None:
    """The walk re-done by its definition: nothing skipped would have fitted when it was met; the budget is kept."""
    for world in WORLDS:
        sizes = {n: p.numel() for n, p in world.base().named_parameters() if not n.startswith("classifier")}
        for seed in range(20):
            tuner = method(__name__, budget=5000, level="tensors", seed=seed)
            taken = tuner.select(world.base(), random.Random(9)).whole
            left = 5000
            for name in random.Random(seed).sample(list(sizes), len(sizes)):
                require((name in taken) == (sizes[name] <= left), f"{name} with {left} left")
                left -= sizes[name] if name in taken else 0
            require(left >= 0, "over budget")
            skipped = [s for n, s in sizes.items() if n not in taken]
            require(not skipped or left < min(skipped), "something that was skipped fits in what is left")
