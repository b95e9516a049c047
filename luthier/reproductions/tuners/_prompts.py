"""What the experiments on decomposed prompts share: neutral rows of pretrained tasks, and prompts trained on them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Tuner
from luthier.reproductions import _sequence


class StepTimes(LoopCallback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self, loop: Loop) -> None:
        self.at.append(time.process_time())

    @property
    def median(self) -> float:
        return statistics.median(b - a for a, b in zip(self.at[:-1], self.at[1:], strict=True))


def tune(
    base: Any, tokenizer: Any, tuner: Tuner, task: str, seed: int, steps: int, batch: int, learning_rate: float,
    change: Callable[[nn.Module], None] = lambda model: None,
) -> tuple[nn.Module, float]:  # fmt: skip
    """The model tuned on rows that do not name their task, and the median CPU time of a step."""
    settings = TrainSettings(
        max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate, warmup_ratio=0.1,
        weight_decay=1e-5,
    )  # fmt: skip
    times = StepTimes()
    train = _sequence.lessons(tokenizer, task, seed, part=_sequence.NEUTRAL)
    done = _sequence.tune(base, tokenizer, tuner, train, settings, seed, [times], change)
    return done.model, times.median
