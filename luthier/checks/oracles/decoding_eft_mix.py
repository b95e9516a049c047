"""The sum of four models by a float64 loop without caches, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

from torch import Tensor

from luthier.checks.oracles._mixing import Formula, against_generate, against_loop


def _mixed(*weights: float) -> Formula:
    def formula(logp: dict[str, Tensor]) -> Tensor:
        z = logp["base"]
        for i, w in enumerate(weights):
            z = z + w * (logp[f"tuned{i}"] - logp["reference"])
        return z

    return formula


def oracle_float64_loop() -> None:
    for weights in ((0.75, 0.5), (0.3, 0.7), (1.0, 0.0), (1.0, -1.0)):
        against_loop(__name__, _mixed(*weights), weights=weights)


def oracle_transformers() -> None:
    against_generate(__name__, _mixed(0.75, 0.5))
