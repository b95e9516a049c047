"""Card 09, the world of regression: what a mixture of two experts says, what it says once tuning moved its weight, and the fit.

Nothing is trained. The tuned model is the same pair of experts with a weight near 1: both abilities are there, and its
answers to continuous prompts are wrong.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from luthier.analysis._bayes import Prompts, Regression, inferred_alpha
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread

GAMMAS = (1.5, 2.0, 3.0)


class RegressionWorld(Experiment):
    scope: ClassVar[str] = "this size of the regression world"
    inputs: ClassVar[int] = 3
    tasks: ClassVar[int] = 8
    shown: ClassVar[int] = 8
    prompts: ClassVar[int] = 4000
    alpha: ClassVar[float] = 0.5
    tuned_logit: ClassVar[float] = 14.0
    setup = """closed-form predictors, nothing trained: 3 inputs, 8 discrete tasks drawn by seed, noise 1, 8 examples a prompt, 4000
    prompts each of the mixture (half discrete), of continuous and of discrete tasks. The tuned model is the mixture with a
    weight of sigmoid(14) in place of 0.5. Labels are scaled by 1.5, 2 and 3, and the answer scaled back."""

    def measure(self, seed: int) -> Row:
        rng = np.random.default_rng(seed)
        world = Regression(rng.standard_normal((self.tasks, self.inputs)))
        mixed, continuous, discrete = (world.draw(self.prompts, self.shown, a, rng) for a in (self.alpha, 0.0, 1.0))

        def loss(prompts: Prompts, alpha: float, gamma: float = 1.0) -> float:
            return float(np.mean((world.says(prompts, alpha, gamma) - prompts.answer) ** 2))

        tuned = 1 / (1 + math.exp(-self.tuned_logit))
        out: Row = {
            f"mixed_{n}": loss(mixed, a) for n, a in (("both", self.alpha), ("discrete", 1.0), ("continuous", 0.0))
        }
        out |= {"base_continuous": loss(continuous, self.alpha), "base_discrete": loss(discrete, self.alpha)}
        for gamma in (1.0, *GAMMAS):
            out |= {
                f"tuned_continuous_{gamma:g}": loss(continuous, tuned, gamma),
                f"tuned_discrete_{gamma:g}": loss(discrete, tuned, gamma),
            }
        experts = world.experts(mixed)
        out["alpha_before"] = inferred_alpha(world.says(mixed, self.alpha), *experts)
        out["alpha_after"] = inferred_alpha(world.says(mixed, tuned), *experts)
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(kind: str) -> str:
            return ", ".join(f"{g:g}: {spread(rows, f'tuned_{kind}_{g:g}')}" for g in (1.0, *GAMMAS))

        return [
            Claim(
                "on the mixture of tasks, the mixture of experts is at least as good as either",
                f"squared error: both {spread(rows, 'mixed_both')}, discrete {spread(rows, 'mixed_discrete')}, "
                f"continuous {spread(rows, 'mixed_continuous')}",
                all(r["mixed_both"] <= min(r["mixed_discrete"], r["mixed_continuous"]) for r in rows),
            ),
            Claim(
                "tuning on discrete tasks costs continuous ones, and scaling the labels brings a part back",
                f"continuous, before {spread(rows, 'base_continuous')}; tuned, by scale {told('continuous')}",
                all(
                    r["tuned_continuous_1"] > r["base_continuous"]
                    and min(r[f"tuned_continuous_{g:g}"] for g in GAMMAS) < r["tuned_continuous_1"]
                    for r in rows
                ),
                headline=True,
            ),
            Claim(
                "the same scaling makes discrete tasks worse",
                f"discrete, before {spread(rows, 'base_discrete')}; tuned, by scale {told('discrete')}",
                all(min(r[f"tuned_discrete_{g:g}"] for g in GAMMAS) > r["tuned_discrete_1"] for r in rows),
            ),
            Claim(
                "the weight that was moved is found by the fit, before and after",
                f"alpha: {spread(rows, 'alpha_before')}, then 1 less {mean([{'x': 1 - r['alpha_after']} for r in rows], 'x'):.2e}",
                all(abs(r["alpha_before"] - self.alpha) < 0.01 and r["alpha_after"] > 0.999 for r in rows),
            ),
        ]
