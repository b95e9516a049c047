"""Sorting in numpy: exactly the floor of the share goes, and no weight that stays is smaller than one that went."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import require, same
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import matrices, rows
from luthier.core import catalog


def oracle_sorted() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls()):
        (state,) = world.of(cls())
        names = matrices(world, state)
        for scope in ("tensor", "model", "row"):
            for sparsity in (0.0, 0.3, 0.77, 1.0):
                out = world.apply(cls(sparsity=sparsity, scope=scope), [state])
                for name in set(state) - set(names):
                    same(out[name], state[name], f"{world.label}: {name}, which is no matrix of a layer")
                pairs = [(rows(world, state[n].numpy()), rows(world, out[n].numpy())) for n in names]
                if scope == "model":
                    whole = [np.concatenate([p[i].ravel() for p in pairs])[None] for i in (0, 1)]
                    pairs = [(whole[0], whole[1])]
                elif scope == "tensor":
                    pairs = [(a.reshape(1, -1), b.reshape(1, -1)) for a, b in pairs]
                for before, after in pairs:
                    wanted = int(np.floor(sparsity * before.shape[1] + 1e-6))
                    for x, y in zip(np.abs(before), after, strict=True):
                        require(
                            int((y == 0).sum()) == wanted,
                            f"{scope} {sparsity}: {int((y == 0).sum())} zeros, not {wanted}",
                        )
                        if 0 < wanted < len(x):
                            require(
                                x[y == 0].max() <= x[y != 0].min(),
                                f"{scope}: a larger weight went before a smaller one",
                            )
