"""Shares from one plain forward of each answer in float64, and the regression world by numerical integration."""

from __future__ import annotations

import math

import numpy as np
import torch

from luthier.analysis._bayes import Regression
from luthier.checks import _battery
from luthier.checks._compare import require
from luthier.checks.analysis import worlds
from luthier.core import catalog


def oracle_shares() -> None:
    method = _battery.example("analysis", "task_inference")
    (asked,) = method.questions.values()
    for world in (w for w in worlds(method) if w.fits):
        loop = world.loop()
        model = loop.plain.eval().double()
        shares = []
        for prompt, *answers in asked:
            logp = []
            for answer in answers:
                if model.config.is_encoder_decoder:
                    read = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
                    ids = torch.tensor([prompt])
                    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=read).logits[0]
                else:
                    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
                logp.append(sum(float(row.log_softmax(-1)[t].detach()) for row, t in zip(logits, answer, strict=True)))
            shares.append(math.exp(logp[1]) / (math.exp(logp[0]) + math.exp(logp[1])))
        model.float()
        found, wanted = method.table(loop)["alpha plain"], sum(shares) / len(shares)
        require(abs(found - wanted) < 1e-4, f"{world.label}: alpha {found}, by plain forwards {wanted}")


def oracle_integration() -> None:
    """One input: posteriors over a fine grid of w."""
    assert catalog.entry("analysis", "task_inference")
    tasks, sigma, tau, alpha = np.array([-1.2, 0.4, 2.0]), 0.6, 1.1, 0.3
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal(4), rng.standard_normal(4)
    grid = np.linspace(-12, 12, 240_001)

    def likelihood(w: np.ndarray) -> np.ndarray:
        return np.exp(-((y[:, None] - X[:, None] * w) ** 2).sum(0) / (2 * sigma**2))

    prior = np.exp(-(grid**2) / (2 * tau**2)) / (tau * math.sqrt(2 * math.pi)) * (grid[1] - grid[0])
    both = np.concatenate([alpha / 3 * likelihood(tasks), (1 - alpha) * prior * likelihood(grid)])
    wanted = float((both * np.concatenate([tasks, grid])).sum() / both.sum())
    world = Regression(tasks[:, None], sigma, tau)
    found = float(world.w_mixture(X[None, :, None], y[None], alpha)[0, 0])
    require(abs(found - wanted) < 1e-8, f"the mixture says {found}, by integration {wanted}")
