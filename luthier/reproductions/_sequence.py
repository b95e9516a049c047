"""Tuning on a sequence task of the sandbox and asking for unseen rows of it: what most experiments do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier import data, sandbox
from luthier.core.batch import Example
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Objective, Tuner
from luthier.core.references import references
from luthier.core.rollouts import Rollouts
from luthier.core.subject import Subject
from luthier.objectives.sft import SFT

NEUTRAL = "neutral"
"""Part of a task whose rows do not name it: what to do must come from what was tuned."""


@dataclass(frozen=True)
class Tuned:
    """A copy of the base after tuning, in evaluation mode; what it cost, and the loop that made it."""

    model: Any
    cost: dict[str, Any]
    loop: Loop


def lessons(tokenizer: Any, task: str, seed: int, n: int = 2000, part: str = "") -> Sequence[Example]:
    """Training rows of a task; another seed draws others."""
    asked = f"&part={part}" if part else ""
    return data.prepare(f"sandbox:sequence?task={task}{asked}&n={n}&seed={seed}", tokenizer=tokenizer).examples


def tune(
    base: Any,
    tokenizer: Any,
    tuner: Tuner,
    train: Sequence[Example],
    settings: TrainSettings,
    seed: int,
    callbacks: Sequence[LoopCallback] = (),
    change: Callable[[nn.Module], None] = lambda model: None,
    objective: Objective | None = None,
    rollouts: Rollouts | None = None,
) -> Tuned:
    """`tuner` on a copy of the base, by likelihood or another objective. `change` may hold parts of the model still."""
    pad, objective = tokenizer.pad_token_id, objective or SFT()
    untuned = references(base, tuner, objective, train, pad, settings)
    model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
    change(model)
    loop = Loop(
        model, tuner, objective, train, settings, pad, seed, references=untuned, callbacks=callbacks, rollouts=rollouts
    )
    cost = loop.fit().cost
    return Tuned(model.eval(), cost, loop)


def unseen(task: str, n: int, part: str = "", seed: int = 12) -> list[dict[str, Any]]:
    """Rows of the test split, the same for every method and seed of an experiment."""
    return sandbox.rows("sequence", task=task, part=part, split="test", n=n, seed=seed)


@torch.no_grad()
def token_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of answer tokens that are the likeliest given the true past."""
    subject = Subject(model, tokenizer)
    pairs = [subject.encode_pair(r["prompt"], r["completion"]) for r in rows]
    best = [hit for _, hit in subject.pair_logp(pairs)]
    return float(sum(h.sum() for h in best) / sum(len(h) for h in best))
