"""The weighted sum by numpy in float64, with given and with equal weights; one checkpoint alone comes back."""

from __future__ import annotations

import numpy as np
import torch

from luthier.checks._compare import close, same
from luthier.checks.edits import worlds
from luthier.core import catalog


def oracle_numpy() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls.example()):
        states = [*world.states(), {n: t * 1.5 for n, t in world.states()[1].items()}]
        for weight in (None, (0.2, 0.5, 0.4), (1.0, -1.0, 1.0)):
            out = cls(weight=weight).apply(states, world.model())
            for name in states[0]:
                stack = np.stack([s[name].double().numpy() for s in states])
                wanted = np.tensordot(np.full(3, 1 / 3) if weight is None else np.array(weight), stack, 1)
                close(out[name], torch.from_numpy(wanted), f"{world.label}: {name} with weights {weight}")
        for name, tensor in cls().apply(states[:1], world.model()).items():
            same(tensor, states[0][name], f"{world.label}: {name} of one checkpoint alone")
