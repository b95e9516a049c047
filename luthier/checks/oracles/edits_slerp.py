"""The arc by rotating in the plane of the two directions, in float64; the ends to the last bit; the straight line when near."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import require, same
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import agree, arrays
from luthier.core import catalog


def _on_the_arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Unit vectors: turn a towards b by the share t of their angle. Lengths: those that the formula implies for a and b."""
    x, y = a.ravel(), b.ravel()
    u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
    straight = u @ v
    across = v - straight * u
    angle = np.arctan2(np.linalg.norm(across), straight)
    if abs(straight) > 0.9995:
        return (1 - t) * a + t * b
    across = across / np.linalg.norm(across)
    turned = np.cos(t * angle) * u + np.sin(t * angle) * across  # = p u + q v
    q = np.sin(t * angle) / np.sin(angle)
    p = turned @ u - q * straight
    return (p * x + q * y).reshape(a.shape)


def oracle_rotation() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in worlds(cls()):
        first, base = world.states()
        second = {n: t.roll(1, -1) * 1.3 if t.is_floating_point() else t for n, t in base.items()}
        a, b = arrays(first), arrays(second)
        far = 0
        for t in (0.2, 0.5, 0.9):
            out = cls(t=t).apply([first, second])
            agree(out, {n: _on_the_arc(a[n], b[n], t) for n in a}, f"{world.label} at t = {t}")
            far += sum(np.abs(_on_the_arc(a[n], b[n], t) - (1 - t) * a[n] - t * b[n]).max() > 1e-3 for n in a)
        require(far > 10, "the arc is the straight line everywhere: nothing was tested")
        for t, wanted in ((0.0, first), (1.0, second)):
            for name, tensor in cls(t=t).apply([first, second]).items():
                same(tensor, wanted[name], f"{world.label}: {name} at t = {t}")
