"""A dense numpy reference: the matrices written out, in float64; at rank 1 and above."""

from __future__ import annotations

from luthier.checks.oracles._kronecker import dense_adapters
from luthier.checks.oracles._tuners import method


def oracle_numpy() -> None:
    for rank in (1, 2):
        dense_adapters(method(__name__, rank=rank), lambda t, p, shared: t[f"{p}.s"] @ t[f"{p}.t"].T)
