"""Card 40 on the sandbox: a connected path of trained modules against scattered ones, at the same number of parameters.

Adapters of 8 after attention and feed-forward (scattered) against sequential inside modules of 4 with aside modules of 4
(connected), and LoRA inside. Token accuracy on unseen rows of a new sequence task at four moments of one training run.
"""

from __future__ import annotations

from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Tuner
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import lessons, token_accuracy, tune, unseen
from luthier.tuners.bottleneck import Bottleneck
from luthier.tuners.iaa import Iaa

TUNERS: dict[str, Tuner] = {
    "scattered": Bottleneck(size=8),
    "connected": Iaa(inside="sequential", inside_size=4, aside_size=4),
    "connected_lora": Iaa(inside="lora", inside_size=3, aside_size=4),
}


class Convergence(Experiment):
    scope: ClassVar[str] = "this size, depth and rate"
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    every: ClassVar[int] = 60
    moments: ClassVar[int] = 4
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 3e-3
    test_rows: ClassVar[int] = 150
    setup = """nano-1m tuned on a sequence task that pretraining never showed, 240 steps of 32 rows, AdamW at 3e-3, constant after
    warm-up, so that every moment of the curve is a result of its own; token accuracy on 150 unseen rows after 60, 120, 180 and
    240 steps. Parameters are equal within 10 %. In a pilot (seed 0) connected and scattered
    modules were level at all four moments. The retrieval experiment of the card is not part of this."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        train, asked = lessons(tokenizer, self.task, seed), unseen(self.task, self.test_rows)
        out: Row = {}
        for name, tuner in TUNERS.items():
            curve = _Curve(self.every, lambda m: token_accuracy(m, tokenizer, asked))
            settings = TrainSettings(
                max_steps=self.every * self.moments, per_device_train_batch_size=self.batch,
                learning_rate=self.learning_rate, lr_scheduler_type="constant_with_warmup",
            )  # fmt: skip
            tune(base, tokenizer, tuner, train, settings, seed, [curve])
            out |= {f"{name}_{step}": value for step, value in curve.values.items()}
            out[f"{name}_parameters"] = float(tuner.parameter_count(base))
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        steps = [self.every * (k + 1) for k in range(self.moments)]
        early, late = steps[:-1], steps[-1]

        def area(name: str) -> float:
            return sum(mean(rows, f"{name}_{s}") for s in early) / len(early)

        def told(name: str) -> str:
            values = [mean(rows, f"{name}_{step}") for step in steps]
            return f"{name} {', '.join(f'{v:.3f}' for v in values)}"

        counts = [mean(rows, f"{n}_parameters") for n in TUNERS]
        measured = "; ".join(map(told, TUNERS)) + f" after {', '.join(map(str, steps))} steps"
        return [
            Claim("the three have the same number of parameters within 10 %",
                  ", ".join(f"{c:,.0f}" for c in counts), max(counts) <= 1.1 * min(counts)),
            Claim("connected modules are ahead of scattered ones early (mean over the moments before the last)",
                  measured, area("connected") > area("scattered")),
            Claim("and not behind them at the end (within one point)",
                  f"{spread(rows, f'connected_{late}')} and {spread(rows, f'scattered_{late}')}",
                  mean(rows, f"connected_{late}") >= mean(rows, f"scattered_{late}") - 0.01),
            Claim("with LoRA inside they are ahead early as well",
                  measured, area("connected_lora") > area("scattered"), central=False),
        ]  # fmt: skip


class _Curve(LoopCallback):
    """A measure after every so many steps."""

    def __init__(self, every: int, measure: Any):
        self.every, self.measure = every, measure
        self.values: dict[int, float] = {}

    def step(self, loop: Loop) -> None:
        if loop.step_index % self.every == 0:
            training = loop.plain.training
            self.values[loop.step_index] = self.measure(loop.plain)
            loop.plain.train(training)
