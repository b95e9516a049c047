"""The difference of two models by a float64 loop without caches, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

import math

from torch import Tensor

from luthier.checks.oracles._mixing import Formula, against_generate, against_loop


def _apart(beta: float = 0.5, alpha: float = 0.1) -> Formula:
    def formula(logp: dict[str, Tensor]) -> Tensor:
        z = (1 + beta) * logp["expert"] - beta * logp["amateur"]
        lowest = max(logp["expert"].tolist()) + (math.log(alpha) if alpha else -math.inf)
        for v, p in enumerate(logp["expert"].tolist()):
            if p < lowest:
                z[v] = -math.inf
        return z

    return formula


def oracle_float64_loop() -> None:
    for beta, alpha in ((0.5, 0.1), (2.0, 0.01), (1.0, 0.0)):
        against_loop(__name__, _apart(beta, alpha), beta=beta, alpha=alpha)


def oracle_transformers() -> None:
    against_generate(__name__, _apart())
