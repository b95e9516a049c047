"""A dense numpy reference: every matrix a sum of np.kron of its own A and B, in float64."""

from __future__ import annotations

from luthier.checks.oracles._kronecker import dense_adapters, kron
from luthier.checks.oracles._tuners import method


def oracle_numpy() -> None:
    dense_adapters(method(__name__), lambda t, p, shared: kron(t[f"{p}.A"], list(t[f"{p}.B"])))
