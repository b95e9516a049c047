"""The settings that always help against a bare PyTorch loop, and what is said of several seeds against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from luthier.checks import tuners
from luthier.checks._compare import close, require
from luthier.checks._models import PAD, WORLDS
from luthier.core import catalog, config
from luthier.core.loop import Loop
from luthier.recipes._seeds import Outcome, Seeds, judge

STEPS, RATE = 12, 2e-3


def oracle_steady_training() -> None:
    """Bias-corrected Adam, warm-up over a tenth, linear decay, decay of matrices only, clipping at 1."""
    world = next(w for w in WORLDS if w.task == "classification")
    n = len(world.examples)
    told = config.recipe(
        {"model": "any", "train": {"max_steps": STEPS, "per_device_train_batch_size": n, "learning_rate": RATE}}
    )
    kit = catalog.load("recipes", __name__.rsplit("recipes_", 1)[-1])()
    full = config.build("tuners", {"name": "full"}, "tuner")
    model = tuners.wrapped(full, world)
    Loop(model, full, world.objective, world.examples, kit.steadily(told, n), PAD).fit()

    wanted = world.base().train()
    named = list(wanted.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    warm = -(-STEPS // 10)

    def factor(step: int) -> float:
        return (step + 1) / warm if step < warm else (STEPS - step) / (STEPS - warm)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    batch = world.batch()
    for _ in range(STEPS):
        optimizer.zero_grad()
        world.loss(wanted, batch).backward()
        torch.nn.utils.clip_grad_norm_(named, 1.0)
        optimizer.step()
        schedule.step()
    close(world.said(model), world.said(wanted.eval()), "logits after steady training and after a bare loop")


def oracle_numpy() -> None:
    """Mean, spread, and the mean best of k over all choices of k runs; accuracy, correlation and when a run has failed."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=6)
    seeds = Seeds("any", [Outcome(float(s), False) for s in scores])
    require(bool(np.isclose(seeds.mean, scores.mean())), "mean over seeds")
    require(bool(np.isclose(seeds.sd, scores.std(ddof=1))), "spread over seeds")
    for k in range(1, 7):
        wanted = np.mean([max(c) for c in itertools.combinations(scores, k)])
        require(bool(np.isclose(seeds.best_of(k), wanted)), f"best of {k}")
    for noise in (0.1, 1.0, 30.0):
        true = rng.normal(size=50)
        said = true + noise * rng.normal(size=50)
        r = float(((said - said.mean()) * (true - true.mean())).mean() / (said.std() * true.std()))
        found = judge(said[:, None], true.tolist(), True)
        require(
            bool(np.isclose(found.score, r)) and found.failed == (r < 0.2), f"correlation {r:.3f} is told as {found}"
        )
        labels, logits = rng.integers(0, 3, 50), rng.normal(size=(50, 3))
        logits[np.arange(50), labels] += 1 / noise
        right = float(
            np.mean([max(range(3), key=lambda c: row[c]) == y for row, y in zip(logits, labels, strict=True)])
        )
        most = max(np.mean(labels == c) for c in range(3))
        verdict = judge(logits, labels.tolist(), False)
        require(
            verdict.score == right and verdict.failed == (right <= most + 0.02),
            f"accuracy {right:.2f} is told as {verdict}",
        )
