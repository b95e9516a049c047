"""Trim, elect and disjoint mean entry by entry in Python's own floats, ranked by sorting all entries."""

from __future__ import annotations

import numpy as np

from luthier.checks.edits import State, worlds
from luthier.checks.oracles._edits import agree, arrays
from luthier.core import catalog


def _trimmed(
    tuned: dict[str, np.ndarray], base: dict[str, np.ndarray], density: float, scope: str
) -> dict[str, np.ndarray]:
    groups = [list(tuned)] if scope == "model" else [[n] for n in tuned]
    out = {}
    for names in groups:
        flat = np.concatenate([(tuned[n] - base[n]).ravel() for n in names])
        keep = np.argsort(-np.abs(flat), kind="stable")[: int(density * len(flat) + 1e-6)]
        kept = np.zeros_like(flat)
        kept[keep] = flat[keep]
        at = 0
        for n in names:
            out[n] = kept[at : at + tuned[n].size].reshape(tuned[n].shape)
            at += tuned[n].size
    return out


def _merged(vectors: list[np.ndarray], weights: list[float], normalize: bool) -> np.ndarray:
    flat = [v.ravel() for v in vectors]
    out = np.zeros(flat[0].size)
    for j in range(out.size):
        elected = np.sign(sum(w * v[j] for w, v in zip(weights, flat, strict=True)))
        agreeing = [(w, v[j]) for w, v in zip(weights, flat, strict=True) if v[j] != 0 and np.sign(v[j]) == elected]
        if agreeing:
            out[j] = sum(w * x for w, x in agreeing) / (sum(w for w, _ in agreeing) if normalize else 1)
    return out.reshape(vectors[0].shape)


def oracle_entry_by_entry() -> None:
    cls = catalog.load("edits", __name__.split("edits_")[-1])
    for world in [w for w in worlds(cls()) if w.label in ("llama", "bert")]:
        states: list[State] = [{n: t for n, t in s.items() if t.numel() < 2000} for s in world.states(4)]
        *tuned, base = [arrays(s) for s in states]
        cases = (
            (0.2, "model", 1.0, True),
            (0.35, "tensor", (0.5, 1.0, 2.0), True),
            (0.5, "model", (1.0, 2.0, 0.3), False),
        )
        for density, scope, weight, normalize in cases:
            vectors = [_trimmed(t, base, density, scope) for t in tuned]
            weights = list(weight) if isinstance(weight, tuple) else [weight] * 3
            out = cls(density=density, scope=scope, weight=weight, normalize=normalize, lambda_=0.8).apply(states)
            wanted = {n: base[n] + 0.8 * _merged([v[n] for v in vectors], weights, normalize) for n in base}
            agree(out, wanted, f"{world.label}, density {density} by {scope}")
