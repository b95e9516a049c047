"""The sum of task vectors by numpy in float64; one model alone, and lambda 0, to the last bit."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import same
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import agree, arrays
from luthier.core import catalog


def oracle_numpy() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls()):
        states = world.states(4)
        *tuned, base = [arrays(s) for s in states]
        for weight, scale, normalize in (
            (1.0, 1.0, False),
            ((0.3, -0.5, 2.0), 0.7, False),
            ((1.0, 2.0, 4.0), 1.3, True),
        ):
            w = np.broadcast_to(weight, 3) / (np.sum(np.broadcast_to(weight, 3)) if normalize else 1)
            out = cls(weight=weight, lambda_=scale, normalize=normalize).apply(states)
            wanted = {n: base[n] + scale * sum(w[i] * (tuned[i][n] - base[n]) for i in range(3)) for n in base}
            agree(out, wanted, f"{world.label}, weights {weight}, lambda {scale}")


def oracle_ends() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls()):
        states = world.states()
        for name, tensor in cls().apply(states).items():
            same(tensor, states[0][name], f"{world.label}: {name} of one model alone")
        for name, tensor in cls(lambda_=0.0).apply(states).items():
            same(tensor, states[1][name], f"{world.label}: {name} at lambda 0")
