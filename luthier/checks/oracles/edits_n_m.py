"""Group by group in plain loops: n of m stay, the largest; by data, the largest times the norms of their inputs."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import require, same
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import inputs, matrices, rows
from luthier.core import catalog


def oracle_groups() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls()):
        (state,) = world.of(cls())
        for n, m, score in ((2, 4, "magnitude"), (1, 4, "magnitude"), (4, 8, "wanda"), (4, 4, "magnitude")):
            out = world.apply(cls(n=n, m=m, score=score), [state])
            for name in matrices(world, state)[:5]:
                before, after = (rows(world, s[name].double().numpy()) for s in (state, out))
                norms = (
                    np.sqrt((inputs(world, state, name) ** 2).sum(0)) if score == "wanda" else np.ones(before.shape[1])
                )
                for x, y in zip(before, after, strict=True):
                    for start in range(0, len(x), m):
                        group = np.abs(x[start : start + m]) * norms[start : start + m]
                        stays = sorted(range(m), key=lambda i: -group[i])[:n]
                        kept = [i for i in range(m) if y[start + i] != 0]
                        require(
                            kept == sorted(stays), f"{world.label} {name}: {kept} of a group stay, not {sorted(stays)}"
                        )
        for name, tensor in world.apply(cls(n=4, m=4), [state]).items():
            same(tensor, state[name], f"{world.label}: {name} where all of four stay")
