"""A dense numpy reference: every matrix a sum of np.kron of the one shared A with outer products, in float64."""

from __future__ import annotations

from luthier.checks.oracles._kronecker import dense_adapters, kron
from luthier.checks.oracles._tuners import method


def oracle_numpy() -> None:
    dense_adapters(
        method(__name__),
        lambda t, p, shared: kron(shared["shared.A"], [s @ r.T for s, r in zip(t[f"{p}.s"], t[f"{p}.t"], strict=True)]),
    )


def oracle_numpy_rank_2() -> None:
    """Above rank 1 the factors are a product of matrices, not an elementwise one."""
    dense_adapters(
        method(__name__, rank=2),
        lambda t, p, shared: kron(shared["shared.A"], [s @ r.T for s, r in zip(t[f"{p}.s"], t[f"{p}.t"], strict=True)]),
    )
