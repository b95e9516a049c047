"""KTO against a float64 loop, and against trl's KTOTrainer given the same mismatched answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close, require
from luthier.checks._models import PAD, groups
from luthier.checks.objectives import World, computed
from luthier.checks.oracles import _pairs
from luthier.core import catalog
from luthier.core.batch import GroupExample

_NAME = __name__.rsplit("_", 1)[-1]


def _gains(examples: Sequence[Any], policy: Any, reference: Any) -> list[list[Tensor]]:
    return [
        [policy.answer_logp(e.prompt, a) - reference.answer_logp(e.prompt, a).detach() for a in e.answers]
        for e in examples
    ]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    others = [float(r.detach()) for e in _gains(objective.companions(examples), policy, reference) for r in e]
    z = max(0.0, sum(others) / len(others))
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e, gains in zip(examples, _gains(examples, policy, reference)):
        good = [True, False] if len(gains) == 2 else [score > 0 for score in e.scores]
        for r, is_good in zip(gains, good):
            x = objective.beta * (r - z)
            if is_good:
                total = total + objective.desirable_weight * (1 - 1 / (1 + torch.exp(-x)))
            else:
                total = total + objective.undesirable_weight * (1 - 1 / (1 + torch.exp(x)))
            n += 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return 0.5


def oracle_trl() -> None:
    """Good and bad answers with weights of their own; policy and reference both ways round, so that z is at work."""
    from trl import KTOConfig, KTOTrainer

    marks = [True, True, False, True, False, False]
    told = [GroupExample(e.row, e.prompt, e.answers[:1], [float(m)]) for e, m in zip(groups(6), marks, strict=True)]
    world = World("points", "llama", tuple(told))
    objective = replace(catalog.load("objectives", _NAME).example(), desirable_weight=1.2, undesirable_weight=0.7)
    rows = [
        {
            "prompt_ids": e.prompt,
            "completion_ids": e.answers[0],
            "KL_completion_ids": c.answers[0],
            "label": m,
        }
        for e, c, m in zip(told, objective.companions(told), marks, strict=True)
    ]
    points = []
    for policy, reference in (
        (world.model(), world.model(reference=True)),
        (world.model(reference=True), world.model()),
    ):
        batch = world.refer(objective, world.batch(objective), reference)
        loss = computed(objective, policy, batch)
        settings = {
            "beta": objective.beta, "desirable_weight": 1.2, "undesirable_weight": 0.7, "max_length": None,
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        row = {"prompt": "a", "completion": "b", "label": True}
        with _pairs.trl_trainer(KTOTrainer, KTOConfig, (policy, reference), row, **settings) as trainer:
            trainer.model.eval()
            wanted = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
            points.append(trainer._metrics["eval"]["kl"][-1])
        close((loss.sum / loss.weight).detach(), wanted.detach(), f"loss and trl's at z = {points[-1]:.3f}")
    require(max(points) > 0, f"reference points {points}: nothing was tested")
    require(PAD == 0, "trl pads by the tokenizer's id")
