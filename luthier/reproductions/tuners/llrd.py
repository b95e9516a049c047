"""Card 46 on the sandbox: which of the known stabilisers makes ten runs on a few rows agree.

Ten seeds (head and order of the data) of full fine-tuning, freezing the lower half, layer-wise decay and a re-initialised
top block, on two classifications and a regression of few rows; then what a rate far too high does without warm-up and
bias correction, and what three epochs do in place of thirty.
"""

from __future__ import annotations

import statistics
from typing import ClassVar

from luthier.core.method import Tuner
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions._small_sets import SmallSets
from luthier.tuners.freeze import Freeze
from luthier.tuners.full import Full
from luthier.tuners.llrd import LLRD
from luthier.tuners.reinit import Reinit

TECHNIQUES: dict[str, Tuner] = {"freeze": Freeze(lowest=0.5), "llrd": LLRD(decay=0.8), "reinit": Reinit(layers=1)}


class Stabilisers(SmallSets):
    seeds: ClassVar[int] = 10
    high: ClassVar[float] = 5.0
    short_epochs: ClassVar[int] = 3
    setup = """nano-encoder on 60 rows of topic (five classes), 60 of acceptability (two) and 240 pairs of
    similarity (a number, never in pretraining), 30 epochs of batches of 16, AdamW at 6e-4 with bias correction,
    10 % warm-up, linear decay and weight decay 0.01 on matrices; 300 unseen rows, accuracy and Pearson
    correlation. A run failed if it is within 2 points of the majority, or below a correlation of 0.2. "rough"
    is 5 times the rate without warm-up and bias correction, "calm" the same rate with both. Pilots on seed 0 of
    an earlier, weaker encoder: full fine-tuning at 1e-4, 3e-4 and 1e-3 gave 0.44, 0.98 and 1.00 on topic and
    0.75, 0.82 and 0.82 on acceptability; at 3e-4 freezing and layer-wise decay had not learned topic yet (0.50
    and 0.75), so the rate is twice that; at 3e-3 rough failed on both (0.21, 0.56) and calm did not (0.81,
    0.86). Sixty pairs of similarity were learned at no rate and sentiment not at 1e-3: so there are more pairs,
    and claims are about tasks that most runs learn. Techniques and strengths are the card's, not tuned here.
    The card's third task (entities in sentences) needs a token head: left out."""

    def measure(self, seed: int) -> Row:
        out: Row = {}
        rate = self.high * self.learning_rate
        for task in self.objectives:
            runs = {
                "full": self.outcome(task, Full(), seed),
                **{name: self.outcome(task, tuner, seed) for name, tuner in TECHNIQUES.items()},
                "rough": self.outcome(
                    task, Full(), seed, learning_rate=rate, warmup_ratio=0.0, adam_correct_bias=False
                ),
                "calm": self.outcome(task, Full(), seed, learning_rate=rate),
                "short": self.outcome(task, Full(), seed, num_train_epochs=self.short_epochs),
            }
            for name, one in runs.items():
                out |= {f"{task}_{name}": one.score, f"{task}_{name}_failed": float(one.failed)}
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        n = len(rows)
        learned = [t for t in self.objectives if sum(r[f"{t}_full_failed"] for r in rows) < n / 2]
        ranking = "; ".join(f"{task}: {self._ranking(rows, task)}" for task in self.objectives)
        rough, calm = (
            {task: sum(r[f"{task}_{name}_failed"] for r in rows) for task in self.objectives}
            for name in ("rough", "calm")
        )
        gains = {task: mean(rows, f"{task}_full") - mean(rows, f"{task}_short") for task in self.objectives}
        return [
            Claim(
                "on each small task that is learned at all one of freezing, layer-wise decay and re-initialisation lowers the "
                "deviation over seeds by a quarter without lowering the mean by more than a standard error",
                f"by deviation: {ranking}",
                bool(learned) and all(any(self._steadier(rows, t, name) for name in TECHNIQUES) for t in learned),
            ),
            Claim(
                "at a rate far too high, without warm-up and bias correction, three of ten runs fail on some task, and with both "
                "at most one of ten does there",
                "; ".join(f"{t}: {rough[t]:.0f} of {n} fail rough, {calm[t]:.0f} calm" for t in self.objectives),
                any(rough[t] >= 0.3 * n and calm[t] <= 0.1 * n for t in self.objectives),
            ),
            Claim(
                "thirty epochs are better than three by a tenth or more on each task that is learned",
                "; ".join(f"{t}: {spread(rows, f'{t}_short')} to {spread(rows, f'{t}_full')}" for t in self.objectives),
                bool(learned) and all(gains[t] >= 0.1 for t in learned),
            ),
        ]

    def _steadier(self, rows: list[Row], task: str, name: str) -> bool:
        full = _sd(rows, f"{task}_full")
        lost = mean(rows, f"{task}_full") - mean(rows, f"{task}_{name}")
        return _sd(rows, f"{task}_{name}") <= 0.75 * full and lost <= full / len(rows) ** 0.5

    def _ranking(self, rows: list[Row], task: str) -> str:
        names = sorted(("full", *TECHNIQUES), key=lambda name: _sd(rows, f"{task}_{name}"))
        return ", ".join(f"{name} {spread(rows, f'{task}_{name}')}" for name in names)


def _sd(rows: list[Row], key: str) -> float:
    return statistics.stdev(r[key] for r in rows) if len(rows) > 1 else 0.0
