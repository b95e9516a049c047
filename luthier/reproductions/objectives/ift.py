"""Card 64 on the sandbox: chains for longer sums by likelihood, by IFT and by its two halves, at equal steps.

How much a model relies on a true past is asked by the method's own mixture: the loss of unseen chains when every token that
was read is mixed with what the model itself said in its place, against the loss with the true tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Collator
from luthier.core.method import Objective
from luthier.objectives.ift import IFT
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._forgetting import exact
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

ARMS: dict[str, Objective] = {
    "sft": SFT(), "residual": IFT(decay=0.0, source="mask"), "propagation": IFT(mix=0.0), "ift": IFT(),
    "ift_detached": IFT(detach_weights=True),
}  # fmt: skip
MIXES = (0.2, 0.4)


class Intuition(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "sum10"
    rows: ClassVar[int] = 300
    steps: ClassVar[int] = 200
    batch: ClassVar[int] = 16
    learning_rate: ClassVar[float] = 1e-3
    test_rows: ClassVar[int] = 300
    setup = """nano-1m, which knows running sums modulo 10 of 2 to 4 numbers, tuned on chains for 5 to 8 numbers: 300 rows, 200
    steps of 16 rows, every weight, AdamW at 1e-3 with linear decay; 300 unseen questions. IFT mixes with lambda 0.2 and looks
    ahead with gamma 0.95; `residual` mixes alone, `propagation` weighs alone."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        test = sandbox.rows("arithmetic", task=self.task, part="long", split="test", n=self.test_rows, seed=12)
        source = f"sandbox:arithmetic?task={self.task}&part=long&n={self.rows}&seed={seed}"
        train = data.prepare(source, tokenizer=tokenizer).examples
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        out: Row = {}
        for name, objective in ARMS.items():
            model = tune(base, tokenizer, Full(), train, settings, seed, objective=objective).model
            out[f"{name}_right"] = exact(model, tokenizer, "arithmetic", test, 70)
            out |= {f"{name}_{k}": v for k, v in self.losses(model, tokenizer).items()}
        return out

    @torch.no_grad()
    def losses(self, model: Any, tokenizer: Any) -> Row:
        """Loss a token of unseen chains with the true past, and what each mixture adds to it."""
        source = f"sandbox:arithmetic?task={self.task}&part=long&split=test&n=100&seed=12"
        examples = data.prepare(source, tokenizer=tokenizer).examples
        batch = Collator(tokenizer.pad_token_id)(examples)
        out: Row = {}
        for mix in MIXES:
            asked = IFT(mix=mix)
            figures = asked.compute(Scorer(model), asked.view(batch, -1, 1, np.random.default_rng(0))).figures
            gold, mixed = (float(s) / w for s, w in (figures["loss/gold"], figures["loss/mixed"]))
            out |= {"gold": gold, f"gap{mix}": mixed - gold}
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(key: str, *names: str) -> str:
            return ", ".join(f"{n} {spread(rows, f'{n}_{key}')}" for n in names or ARMS)

        def at(name: str, key: str) -> float:
            return mean(rows, f"{name}_{key}")

        return [
            Claim(
                "IFT answers at most 3 points worse than SFT at equal steps",
                f"right answers: {told('right')}",
                at("ift", "right") >= at("sft", "right") - 0.03,
            ),
            Claim(
                "trained on mixtures, a model loses less when its past is mixed with its own predictions",
                f"loss added by a mixture of 0.2: {told('gap0.2')}; of 0.4: {told('gap0.4')}; loss with the true past: "
                f"{told('gold')}",
                all(at(n, f"gap{m}") < at("sft", f"gap{m}") for n in ("residual", "ift") for m in MIXES),
            ),
            Claim(
                "IFT answers better than SFT, as the paper finds at 7 billion parameters",
                f"right answers: {told('right', 'sft', 'ift')}",
                at("ift", "right") > at("sft", "right"),
            ),
        ]

    def explanation(self, rows: list[Row]) -> str:
        def points(name: str) -> str:
            return f"{100 * (mean(rows, f'{name}_right') - mean(rows, 'sft_right')):+.1f}"

        return (
            f"at {self.scope} and equal steps IFT answers {points('ift')} points against SFT: the temporal residual connection "
            f"alone {points('residual')}, relation propagation alone {points('propagation')}, IFT with detached weights "
            f"{points('ift_detached')}. What does appear: a model trained on mixtures loses less on them"
        )
