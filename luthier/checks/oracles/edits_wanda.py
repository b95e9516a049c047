"""|W| times the norms of what the matrix is given, one row of data at a time in float64, ranked by sorting."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import require, same
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import inputs, matrices, rows
from luthier.core import catalog


def oracle_norms_by_hand() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    differs = 0
    for world in worlds(cls()):
        (state,) = world.of(cls())
        for sparsity in (0.5, 0.26):
            out = world.apply(cls(sparsity=sparsity), [state])
            names = matrices(world, state)
            for name in set(state) - set(names):
                same(out[name], state[name], f"{world.label}: {name}, which is no matrix of a layer")
            for name in names[:4] + names[-3:]:
                weight, after = (rows(world, s[name].double().numpy()) for s in (state, out))
                scores = np.abs(weight) * np.sqrt((inputs(world, state, name) ** 2).sum(0))
                wanted = int(np.floor(sparsity * weight.shape[1] + 1e-6))
                for score, size, y in zip(scores, np.abs(weight), after, strict=True):
                    require(
                        int((y == 0).sum()) == wanted, f"{name}: {int((y == 0).sum())} zeros in a row, not {wanted}"
                    )
                    require(
                        score[y == 0].max() <= score[y != 0].min() * (1 + 1e-5), f"{name}: a higher score went first"
                    )
                    differs += size[y == 0].max() > size[y != 0].min()
    require(differs > 50, "the norms of the inputs decide nothing: magnitude alone would do the same")
