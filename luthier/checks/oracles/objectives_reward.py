"""The reward loss against a float64 loop over pairs, and against trl's RewardTrainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, groups
from luthier.checks.objectives import computed, worlds
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        r = [policy.head([*e.prompt, *answer])[0] for answer in e.answers]
        of_prompt = [
            _pairs.softplus(r[j] - r[i])
            for i in range(len(r))
            for j in range(len(r))
            if e.scores[i] > e.scores[j]
        ]  # fmt: skip
        total = total + sum(of_prompt) / len(of_prompt) if of_prompt else total
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(2) * sum(len(set(e.scores)) > 1 for e in examples) / len(examples)


def oracle_trl() -> None:
    from trl import RewardConfig, RewardTrainer

    margins = [0.5, 1.0, 0.125, 2.0, 0.25, 1.5]
    told = tuple(replace(e, scores=[m, 0.0]) for e, m in zip(groups(6), margins, strict=True))
    plain = catalog.load("objectives", _NAME)()
    for objective in (plain, replace(plain, margin="scores", center_rewards_coefficient=0.1)):
        world = replace(worlds(objective)[0], examples=told)
        rows = [e.prompt + e.answers[k] for k in (0, 1) for e in told]  # all chosen ones first
        batch = {
            "input_ids": _pairs.padded(rows, PAD),
            "attention_mask": _pairs.padded([[1] * len(r) for r in rows], 0),
        }
        if objective.margin == "scores":
            batch["margin"] = torch.tensor(margins)
        settings = {"center_rewards_coefficient": objective.center_rewards_coefficient or None}
        with _pairs.trl_trainer(RewardTrainer, RewardConfig, (world.model(),), _pairs.PAIR_ROW, **settings) as trainer:
            trainer.model.eval()
            wanted = trainer.compute_loss(trainer.model, batch).detach()
        found = computed(objective, world.model(), world.batch(objective))
        close((found.sum / found.weight).detach(), wanted, f"loss and trl's with {settings}")
