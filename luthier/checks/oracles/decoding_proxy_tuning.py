"""The sum of three models by a float64 loop without caches, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

from torch import Tensor

from luthier.checks.oracles._mixing import Formula, against_generate, against_loop


def _steered(alpha: float, top: int = 0) -> Formula:
    def formula(logp: dict[str, Tensor]) -> Tensor:
        z = logp["base"] + alpha * (logp["expert"] - logp["anti_expert"])
        if not top:
            return z
        seen = sorted(range(len(z)), key=lambda v: -float(logp["base"][v]))[:top]
        hidden = z.new_full(z.shape, float("-inf"))
        hidden[seen] = z[seen]
        return hidden

    return formula


def oracle_float64_loop() -> None:
    for alpha in (0.5, 1.0, -0.5):
        against_loop(__name__, _steered(alpha), alpha=alpha)
    against_loop(__name__, _steered(1.0, 3), top=3)
    against_loop(__name__, _steered(1.0), base="base", expert=None)


def oracle_transformers() -> None:
    against_generate(__name__, _steered(1.0))
