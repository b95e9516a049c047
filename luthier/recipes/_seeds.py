"""One setting under several seeds: what held-out rows say of each, and what the seeds say together.

score      higher is better: accuracy, Pearson correlation, or minus the held-out loss where there is no label
failed     accuracy within 2 points of the majority's, correlation undefined or below 0.2, loss not below the untuned one
best of k  expected best score among k of the n runs, drawn without replacement:  sum_i s_(i) C(i-1, k-1) / C(n, k)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.core.batch import Example, LabelledExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback, seed_everything
from luthier.core.method import Objective, Tuner
from luthier.objectives._family import HeadObjective

MAJORITY_MARGIN, LEAST_CORRELATION = 0.02, 0.2


@dataclass(frozen=True)
class Outcome:
    """One run: its score on held-out rows, and whether it failed."""

    score: float
    failed: bool


@dataclass
class Seeds:
    """Runs of one setting."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        return [o.score for o in self.outcomes]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def failures(self) -> int:
        return sum(o.failed for o in self.outcomes)

    def best_of(self, k: int) -> float:
        n, ordered = len(self.scores), sorted(self.scores)
        return sum(s * math.comb(i, k - 1) for i, s in enumerate(ordered)) / math.comb(n, k)

    def row(self) -> dict[str, Any]:
        curve = [self.best_of(k) for k in range(1, len(self.scores) + 1)]
        return {
            "setting": self.name, "mean": self.mean, "sd": self.sd, "worst": min(self.scores), "failures": self.failures,
            "runs": len(self.scores), "best_of_k": curve,
        }  # fmt: skip

    def text(self) -> str:
        return f"{self.name}: {self.mean:.3f} ± {self.sd:.3f} (worst {min(self.scores):.3f}, {self.failures} failed)"


def train_once(
    load: Any, tuner: Tuner, objective: Objective, train: Sequence[Example], held: Sequence[Example], settings: TrainSettings,
    seed: int,
) -> Outcome:  # fmt: skip
    """One run from the seed's own head and data order, judged on `held`. `load()` gives the untuned model as a `Loaded`."""
    labelled = isinstance(held[0], LabelledExample) and not isinstance(held[0].label, list)
    start = _Start(held)
    loop = trained(load, tuner, objective, train, settings, seed, [] if labelled else [start])
    if labelled:
        numbers = isinstance(objective, HeadObjective) and "regression" in objective.problems
        return judge(outputs(loop, held), [e.label for e in held], numbers)  # type: ignore[union-attr]
    loss = loop.held_out_loss(held)
    return Outcome(-loss, not loss < start.loss)


def trained(
    load: Any, tuner: Tuner, objective: Objective, train: Sequence[Example], settings: TrainSettings, seed: int,
    callbacks: Sequence[LoopCallback] = (),
) -> Loop:  # fmt: skip
    """The loop at the end of one run without a folder."""
    seed_everything(seed)
    loaded = load()
    settings = settings.model_copy(update={"save_strategy": "no", "eval_strategy": "no", "report_to": "none"})
    model = tuner.wrap(loaded.model, loaded.task, seed)
    loop = Loop(model, tuner, objective, train, settings, loaded.tokenizer.pad_token_id, seed, callbacks=callbacks)
    loop.fit()
    return loop


class _Start(LoopCallback):
    """The held-out loss before the first step."""

    def __init__(self, held: Sequence[Example]):
        self.held, self.loss = held, math.inf

    def start(self, loop: Loop) -> None:
        self.loss = loop.held_out_loss(self.held)


@torch.no_grad()
def outputs(loop: Loop, held: Sequence[Example]) -> np.ndarray:
    """What the head says (rows, classes) of each held-out row."""
    size = loop.settings.per_device_eval_batch_size
    loop.wrapped.eval()
    batches = [loop.collate(held[i : i + size]).to(loop.device) for i in range(0, len(held), size)]
    return torch.cat([loop.scorer.class_logits(b).float().cpu() for b in batches]).numpy()


def judge(said: np.ndarray, labels: Sequence[Any], numbers: bool) -> Outcome:
    """Accuracy of classes, or Pearson correlation of numbers; a correlation that is undefined is a failure, not a NaN."""
    true = np.asarray(labels)
    if not numbers:
        score = float((said.argmax(1) == true).mean())
        majority = float(np.bincount(true).max() / len(true))
        return Outcome(score, score <= majority + MAJORITY_MARGIN)
    guess = said[:, 0].astype(float)
    if not np.isfinite(guess).all() or guess.std() < 1e-9 or true.std() == 0:
        return Outcome(0.0, True)
    score = float(np.corrcoef(guess, true)[0, 1])
    return Outcome(score, score < LEAST_CORRELATION)
