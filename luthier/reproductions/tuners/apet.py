"""Card 61 on the sandbox: how many arbitrary parameters a new task needs, and whether it matters which.

Random scalars of the model at N on a grid, several draws each, beside random tensors, random units and full fine-tuning.
Two thresholds are read: N_low, the smallest N whose mean minus two standard deviations over draws is above the untuned
model; N_high, the smallest N within 2 points of full fine-tuning.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import ClassVar

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.method import Tuner
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import lessons, token_accuracy, tune, unseen
from luthier.tuners.apet import APET
from luthier.tuners.apet_units import ApetUnits
from luthier.tuners.full import Full


class ArbitraryParameters(Experiment):
    scope: ClassVar[str] = "this size, rate and number of steps"
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    steps: ClassVar[int] = 150
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 3e-3
    full_learning_rate: ClassVar[float] = 1e-3
    least: ClassVar[int] = 256
    grid: ClassVar[int] = 5
    test_rows: ClassVar[int] = 150
    setup = """nano-1m tuned on a sequence task that pretraining never showed, 150 steps of 32 rows, AdamW without decay at 3e-3
    (full fine-tuning at 1e-3). N is 256 times a power of four, five values; each seed is another draw of the parameters and
    another order of the data. In the card's pilot, on a decoder of 110,272 parameters, N_low was 256 and N_high 4,096."""

    def numbers(self) -> list[int]:
        return [self.least * 4**i for i in range(self.grid)]

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        train, asked = lessons(tokenizer, self.task, seed), unseen(self.task, self.test_rows)
        out: Row = {
            "total": float(sum(p.numel() for p in base.parameters())),
            "base_accuracy": token_accuracy(base.eval(), tokenizer, asked),
        }

        def run(name: str, tuner: Tuner, learning_rate: float) -> None:
            settings = TrainSettings(
                max_steps=self.steps,
                per_device_train_batch_size=self.batch,
                learning_rate=learning_rate,
                weight_decay=0.0,
            )
            done = tune(base, tokenizer, tuner, train, settings, seed)
            out[f"{name}_accuracy"] = token_accuracy(done.model, tokenizer, asked)
            out[f"{name}_trained"] = done.cost["trainable_parameters"]
            out[f"{name}_moved"] = done.cost["moved_parameters"]

        for n in self.numbers():
            run(f"scalars{n}", APET(budget=n, level="scalars", seed=seed), self.learning_rate)
        top = self.numbers()[-1]
        run("tensors", APET(budget=top, level="tensors", seed=seed), self.learning_rate)
        run("units", ApetUnits(budget=top, seed=seed), self.learning_rate)
        run("full", Full(), self.full_learning_rate)
        return out

    def thresholds(self, rows: list[Row]) -> tuple[int | None, int | None]:
        """(N_low, N_high); None where no N of the grid reaches it."""
        chance, full = mean(rows, "base_accuracy"), mean(rows, "full_accuracy")
        low = high = None
        for n in reversed(self.numbers()):
            told = [r[f"scalars{n}_accuracy"] for r in rows]
            sd = statistics.stdev(told) if len(told) > 1 else 0.0
            if statistics.fmean(told) - 2 * sd > chance:
                low = n
            if statistics.fmean(told) >= full - 0.02:
                high = n
        return low, high

    def claims(self, rows: list[Row]) -> list[Claim]:
        names = [f"scalars{n}" for n in self.numbers()]
        means = [mean(rows, f"{k}_accuracy") for k in names]
        wide = max(max(r[f"{k}_accuracy"] for r in rows) - min(r[f"{k}_accuracy"] for r in rows) for k in names)
        low, high = self.thresholds(rows)
        total, top = rows[0]["total"], self.numbers()[-1]
        curve = ", ".join(f"{n:,}: {spread(rows, f'scalars{n}_accuracy')}" for n in self.numbers())
        exact = all(
            r[f"{k}_trained"] == n and r[f"{k}_moved"] <= n for r in rows for k, n in zip(names, self.numbers())
        )
        return [
            Claim(
                "accuracy does not fall as N grows (by more than 3 points)",
                f"token accuracy by N: {curve}; untuned {spread(rows, 'base_accuracy')}, full {spread(rows, 'full_accuracy')}",
                all(b >= a - 0.03 for a, b in pairwise(means)),
            ),
            Claim(
                "which parameters hardly matters: draws differ by at most 8 points", f"{wide:.3f} at most", wide <= 0.08
            ),
            Claim(
                "both thresholds lie on the grid, N_low below N_high, N_high below a tenth of the model",
                f"N_low {low}, N_high {high}, of {total:,.0f}",
                low is not None and high is not None and low < high <= total / 10,
            ),
            Claim(
                "exactly N scalars are trained; those that never had a gradient stay",
                f"moved at N = {top:,}: {spread(rows, f'scalars{top}_moved')}",
                exact,
            ),
            Claim(
                f"whole tensors and units of {top:,} parameters are within 10 points of scalars",
                f"tensors {spread(rows, 'tensors_accuracy')}, units {spread(rows, 'units_accuracy')}",
                max(abs(mean(rows, f"{k}_accuracy") - means[-1]) for k in ("tensors", "units")) <= 0.10,
                central=False,
            ),
        ]
