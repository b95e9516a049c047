"""The sum of three models by a float64 loop without caches, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

from torch import Tensor

from luthier.checks.oracles._mixing import against_generate, against_loop


def _emulated(logp: dict[str, Tensor]) -> Tensor:
    return logp["base"] + logp["tuned"] - logp["reference"]


def oracle_float64_loop() -> None:
    against_loop(__name__, _emulated)
    against_loop(__name__, _emulated, base="base", tuned=None)


def oracle_transformers() -> None:
    against_generate(__name__, _emulated)
