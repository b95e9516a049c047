"""What the experiments on decomposed prompts share: neutral rows of pretrained tasks, and prompts trained on them."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Tuner
from luthier.core.subject import Subject
from luthier.objectives.sft import SFT


class StepTimes(LoopCallback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self, loop: Loop) -> None:
        self.at.append(time.process_time())

    @property
    def median(self) -> float:
        return statistics.median(b - a for a, b in zip(self.at[:-1], self.at[1:], strict=True))


def rows(task: str, split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Questions that do not name their task: what to do must come from the prompt."""
    return sandbox.rows("sequence", task=task, part="neutral", split=split, n=n, seed=seed)


def tune(
    base: Any, tokenizer: Any, tuner: Tuner, task: str, seed: int, steps: int, batch: int, learning_rate: float,
    change: Callable[[nn.Module], None] = lambda model: None,
) -> tuple[nn.Module, float]:  # fmt: skip
    """The tuned model and the median CPU time of a step. `change` may hold parts of the tuner still."""
    source = f"sandbox:sequence?task={task}&part=neutral&n=2000&seed={seed}"
    train = data.prepare(source, tokenizer=tokenizer).examples
    model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
    change(model)
    settings = TrainSettings(
        max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate, warmup_ratio=0.1,
        weight_decay=1e-5,
    )  # fmt: skip
    times = StepTimes()
    Loop(model, tuner, SFT(), train, settings, tokenizer.pad_token_id, seed, callbacks=[times]).fit()
    return model.eval(), times.median


@torch.no_grad()
def token_accuracy(model: Any, tokenizer: Any, asked: list[dict[str, Any]]) -> float:
    """Share of answer tokens that are the likeliest given the true past."""
    subject = Subject(model, tokenizer)
    pairs = [subject.encode_pair(r["prompt"], r["completion"]) for r in asked]
    best = [hit for _, hit in subject.pair_logp(pairs)]
    return float(sum(h.sum() for h in best) / sum(len(h) for h in best))
