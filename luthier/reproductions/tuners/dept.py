"""Card 66 on the sandbox: a short prompt with a low-rank correction against a long prompt of as many parameters.

A pretrained task is asked for without being named; 200 steps must make the model do it. Compared: the accuracy, the CPU
time of a step, and the same method with one learning rate for everything.
"""

from __future__ import annotations

import statistics
from typing import ClassVar

from luthier import sandbox
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import NEUTRAL, token_accuracy, unseen
from luthier.reproductions.tuners import _prompts
from luthier.tuners.dept import DePT
from luthier.tuners.prompt_tuning import PromptTuning


class DecomposedPromptTuning(Experiment):
    scope: ClassVar[str] = "this size and these rates"
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    tasks: ClassVar[tuple[str, ...]] = ("reverse", "sort")
    steps: ClassVar[int] = 200
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 0.3
    long: ClassVar[int] = 40
    short: ClassVar[int] = 12
    max_length: ClassVar[int] = 24
    test_rows: ClassVar[int] = 200
    setup = """nano-1m; rows of a pretrained sequence task behind a word that says nothing, 200 steps of 32 rows, AdamW at
    0.3 for prompts with linear decay; DePT with 12 rows and the rank that the parameters of 40 rows allow, its correction
    at 1/60 of that rate. Accuracy is that of answer tokens under teacher forcing on 200 unseen rows, mean over the tasks
    reverse and sort; times are medians of CPU time on one thread. Pilot, seed 0,
    reverse alone: 0.999 for the long prompt, 1.000 for DePT at 0.53 of the step time, 0.078 at one rate; frozen 0.570. The
    rates are the card's; no other was tried."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        short = DePT(tokens=self.short, budget=self.long, max_length=self.max_length)
        tuners = {
            "prompt": PromptTuning(tokens=self.long),
            "dept": short,
            "one_rate": DePT(tokens=self.short, budget=self.long, max_length=self.max_length, lr_ratio=1.0),
        }
        told: dict[str, list[float]] = {}
        for task in self.tasks:
            asked = unseen(task, self.test_rows, NEUTRAL)
            told.setdefault("frozen_accuracy", []).append(token_accuracy(base, tokenizer, asked))
            for name, tuner in tuners.items():
                model, seconds = _prompts.tune(
                    base, tokenizer, tuner, task, seed, self.steps, self.batch, self.learning_rate
                )
                told.setdefault(f"{name}_accuracy", []).append(token_accuracy(model, tokenizer, asked))
                told.setdefault(f"{name}_step_seconds", []).append(seconds)
        row = {k: statistics.fmean(v) for k, v in told.items()}
        counts = {f"{k}_parameters": float(t.parameter_count(base)) for k, t in tuners.items()}
        return row | counts | {"step_ratio": row["dept_step_seconds"] / row["prompt_step_seconds"]}

    def claims(self, rows: list[Row]) -> list[Claim]:
        prompt, dept, one = (mean(rows, f"{k}_accuracy") for k in ("prompt", "dept", "one_rate"))
        return [
            Claim(
                "at no more parameters DePT is at most 2 points below the long prompt",
                f"accuracy: DePT {spread(rows, 'dept_accuracy')}, prompt {spread(rows, 'prompt_accuracy')}, "
                f"frozen {spread(rows, 'frozen_accuracy')}; parameters {mean(rows, 'dept_parameters'):.0f} and "
                f"{mean(rows, 'prompt_parameters'):.0f}",
                dept >= prompt - 0.02 and mean(rows, "dept_parameters") <= mean(rows, "prompt_parameters"),
            ),
            Claim(
                "a step takes at most 0.8 of the time",
                f"ratio {spread(rows, 'step_ratio')}",
                mean(rows, "step_ratio") <= 0.8,
            ),
            Claim(
                "one rate for everything is worse by 20 points",
                f"accuracy at one rate {spread(rows, 'one_rate_accuracy')}",
                dept - one >= 0.2,
            ),
        ]
