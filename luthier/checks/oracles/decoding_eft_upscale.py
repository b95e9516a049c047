"""The sum of three models by a float64 loop without caches, and by transformers' `generate` with a `LogitsProcessor`."""

from __future__ import annotations

from torch import Tensor

from luthier.checks.oracles._mixing import Formula, against_generate, against_loop


def _emulated(beta: float = 1.0, trusted: float = 1.0) -> Formula:
    def formula(logp: dict[str, Tensor]) -> Tensor:
        mass, kept = 0.0, set()
        for v in sorted(range(len(logp["tuned"])), key=lambda v: -float(logp["tuned"][v])):
            if mass >= trusted:
                break
            kept.add(v)
            mass += float(logp["tuned"][v].exp())
        z = beta * logp["base"]
        for v in range(len(z)) if trusted == 1 else kept:
            z[v] = z[v] + logp["tuned"][v] - beta * logp["reference"][v]
        return z

    return formula


def oracle_float64_loop() -> None:
    against_loop(__name__, _emulated())
    against_loop(__name__, _emulated(1.5), beta=1.5)
    against_loop(__name__, _emulated(1.0, 0.6), trusted_top_p=0.6)
    against_loop(__name__, _emulated(), draft_tokens=3)


def oracle_transformers() -> None:
    against_generate(__name__, _emulated())
    against_generate(__name__, _emulated(), draft_tokens=4)
