"""The paper's two children by hand: Adam in numpy with the masks of a run, and squared gradients row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks import tuners
from luthier.checks._compare import require
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import method
from luthier.core.loop import LoopCallback
from luthier.core.trainable import StepGuard

LR, DECAY, EPS, STEPS, SHARE = 0.003, 0.1, 1e-4, 5, 0.3


class _Masks(LoopCallback):
    def __init__(self) -> None:
        self.by_step: list[dict[int, Tensor]] = []

    def step(self, loop: Any) -> None:
        assert isinstance(loop.guard, StepGuard)
        self.by_step.append({id(p): moves.clone() for p, (moves, _) in loop.guard.drawn.items()})


def oracle_numpy_adam() -> None:
    """Masked gradients over p into both moments; a masked element does not move in that step, by decay or momentum."""
    for world in (w for w in WORLDS if w.architecture in ("llama", "gpt2", "bert-classifier")):
        tuner, masks = method(__name__, share=SHARE), _Masks()
        model, plain = tuners.wrapped(tuner, world), world.base().train()
        n = len(world.examples)
        run = tuners.loop(
            tuner, world, model, STEPS, per_device_train_batch_size=n, learning_rate=LR, weight_decay=DECAY,
            max_grad_norm=0.0, adam_epsilon=EPS,
        )  # fmt: skip
        run.callbacks.append(masks)
        run.fit()
        names = {id(p): k for k, p in model.named_parameters()}
        w = {k: p.detach().double().numpy().copy() for k, p in plain.named_parameters()}
        m, v = ({k: np.zeros_like(x) for k, x in w.items()} for _ in range(2))
        for t, drawn in enumerate(masks.by_step, 1):
            moves = {names[i]: mask.numpy() for i, mask in drawn.items()}
            plain.zero_grad()
            with torch.no_grad():
                for k, p in plain.named_parameters():
                    p.copy_(torch.from_numpy(w[k]))
            world.loss(plain).backward()
            for k, p in plain.named_parameters():
                g = p.grad.double().numpy() if p.grad is not None else np.zeros_like(w[k])
                g = g * moves[k] / SHARE if k in moves else g  # a task head moves as a whole
                m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
                new = w[k] * (1 - LR * DECAY) - LR * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + EPS)
                w[k] = np.where(moves[k], new, w[k]) if k in moves else new
        share = float(np.mean([float(mask.double().mean()) for drawn in masks.by_step for mask in drawn.values()]))
        require(abs(share - SHARE) < 0.05, f"{world.label}: a share of {share:.2f} moves, not {SHARE}")
        for k, p in model.named_parameters():
            gap = float(np.abs(p.detach().double().numpy() - w[k]).max())
            require(gap < 2e-5, f"{world.label}: {k} differs by {gap:.1e} from numpy's")


def oracle_fisher_by_hand() -> None:
    """Squares of each row's gradient, summed in numpy; the largest p of all elements move, the rest is bit-identical."""
    for world in (w for w in WORLDS if w.architecture in ("llama", "bert-classifier", "t5")):
        tuner = method(__name__, variant="task_driven", share=0.1, rows=99)
        plain = world.base()
        fisher = {k: np.zeros(p.shape) for k, p in plain.named_parameters()}
        for example in world.examples:
            batch = world.batch([example])
            plain.zero_grad()
            (world.loss(plain, batch) * world.objective.weight(batch)).backward()
            for k, p in plain.named_parameters():
                if p.grad is not None:
                    fisher[k] += p.grad.double().numpy() ** 2
        body = [k for k in fisher if not k.startswith("classifier.")]
        flat = np.concatenate([fisher[k].ravel() for k in body])
        wanted = np.zeros(len(flat), bool)
        wanted[np.argsort(-flat)[: round(0.1 * len(flat))]] = True
        model = tuners.wrapped(tuner, world)
        tuners.loop(tuner, world, model, 3).fit()
        base = dict(world.base().named_parameters())
        moved = np.concatenate([(model.get_parameter(k) != base[k]).numpy().ravel() for k in body])
        odd = int((moved & ~wanted).sum())
        require(
            odd <= 2, f"{world.label}: {odd} elements moved that are not among the largest"
        )  # ties may fall either way
        require(moved.sum() >= 0.95 * wanted.sum(), f"{world.label}: only {moved.sum()} of {wanted.sum()} moved")
