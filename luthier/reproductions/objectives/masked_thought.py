"""Card 26 on the sandbox: longer sums than pretraining shows, learned step by step from few examples.

SFT against masked thought at equal steps, rate and data, with enough rows for SFT to learn the task and with too few. How
much an answer depends on its question is asked directly: a chain is given up to `3+4=` and the operand 4 is changed in the
question alone; the measure is the probability of the sum with the question's operand.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.subject import Subject
from luthier.objectives.masked_thought import MaskedThought
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._forgetting import exact
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

ARMS = {
    "many_sft": ("many", "mask", 0.0), "many_mask2": ("many", "mask", 0.2),
    "few_sft": ("few", "mask", 0.0), "few_mask1": ("few", "mask", 0.1), "few_mask2": ("few", "mask", 0.2),
    "few_mask4": ("few", "mask", 0.4), "few_random2": ("few", "random", 0.2),
}  # fmt: skip
"""Name: how many rows, kind and rate."""


class LongerSums(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "sum10"
    many: ClassVar[int] = 300
    few: ClassVar[int] = 80
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 16
    learning_rate: ClassVar[float] = 1e-3
    test_rows: ClassVar[int] = 300
    asked: ClassVar[int] = 200
    setup = """nano-1m, which knows running sums modulo 10 of 2 to 4 numbers, tuned on chains for 5 to 8 numbers: 300 or 80 rows,
    250 steps of 16 rows, AdamW at 1e-3 with linear decay, the rate of holes growing over two thirds of the run; then 300 unseen
    questions, and 200 chains whose question was changed. One pilot with seed 0 and 80 rows set the number of steps; one with
    300 rows and 500 steps left the masked model behind as well (0.93 against 0.97 on 150 questions)."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        test = sandbox.rows("arithmetic", task=self.task, part="long", split="test", n=self.test_rows, seed=12)
        out: Row = {"base": exact(base, tokenizer, "arithmetic", test, 60)}
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        for name, (size, kind, rate) in ARMS.items():
            source = f"sandbox:arithmetic?task={self.task}&part=long&n={getattr(self, size)}&seed={seed}"
            train = data.prepare(source, tokenizer=tokenizer).examples
            objective = MaskedThought(kind=kind, rate=rate).for_tokenizer(tokenizer)  # type: ignore[arg-type]
            model = tune(base, tokenizer, Full(), train, settings, seed, objective=objective).model
            out[name] = exact(model, tokenizer, "arithmetic", test, 60)
            out[f"{name}_question"] = self.follows_question(model, tokenizer, test[: self.asked])
        return out

    def follows_question(self, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
        """Mean probability of the sum with the operand that the question names, where the chain wrote another."""
        prompts, sums = [], []
        for i, row in enumerate(rows):
            operands, steps = list(row["operands"]), row["steps"]
            k = 1 + i % (len(operands) - 1)  # the step that adds operand k
            other = (operands[k] + 1 + i % 9) % 10
            written = row["completion"].split(";")[: k - 1]
            glyph = "&" if "&" in row["completion"] else "+"
            step = f"{steps[k - 1].left}{glyph}{steps[k - 1].right}="
            question = "+".join(map(str, [*operands[:k], other, *operands[k + 1 :]]))
            prompts.append(
                f"{self.task} {question}:" + "".join(f"{w};" for w in written) + ("" if written else " ") + step
            )
            sums.append(str((int(steps[k - 1].left) + other) % 10))
        logp, _ = Subject(model, tokenizer).logp(prompts, sums)
        return float(np.exp(logp).mean())

    def explanation(self, rows: list[Row]) -> str:
        return (
            "at this size, at equal steps, masking gives fewer right answers at every rate that was tried; and with or without "
            "it the next sum follows the operand that the chain has written, hardly ever the one of the changed question"
        )

    def claims(self, rows: list[Row]) -> list[Claim]:
        gap = mean(rows, "many_mask2") - mean(rows, "many_sft")
        curve = ", ".join(
            f"{rate}: {spread(rows, arm)}"
            for rate, arm in (("0", "few_sft"), ("0.1", "few_mask1"), ("0.2", "few_mask2"), ("0.4", "few_mask4"))
        )
        return [
            Claim(
                "with rows enough for SFT, masking at 0.2 is at most 3 points worse",
                f"right answers: masked {spread(rows, 'many_mask2')}, SFT {spread(rows, 'many_sft')}, "
                f"base {spread(rows, 'base')}",
                gap >= -0.03,
            ),
            Claim(
                "masking makes the answer depend more on the question",
                f"probability of the question's sum, 300 rows: masked {spread(rows, 'many_mask2_question')}, "
                f"SFT {spread(rows, 'many_sft_question')}; 80 rows: masked {spread(rows, 'few_mask2_question')}, "
                f"SFT {spread(rows, 'few_sft_question')}",
                all(mean(rows, f"{n}_mask2_question") > mean(rows, f"{n}_sft_question") for n in ("many", "few")),
            ),
            Claim(
                "with few rows some rate of masking beats SFT, as the paper's models of 7 billion parameters show",
                f"right answers by rate, 80 rows: {curve}",
                max(mean(rows, a) for a in ("few_mask1", "few_mask2", "few_mask4")) > mean(rows, "few_sft"),
                central=False,
            ),
            Claim(
                "a mask serves better than random tokens",
                f"rate 0.2, 80 rows: mask {spread(rows, 'few_mask2')}, random {spread(rows, 'few_random2')}",
                mean(rows, "few_mask2") > mean(rows, "few_random2"),
                central=False,
            ),
        ]  # fmt: skip
