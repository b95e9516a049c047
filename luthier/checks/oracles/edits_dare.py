"""What a drop with rescaling must be, without its random numbers: dropped entries are the base's, the others are scaled, as
many stay as the density says, the mean over draws is task arithmetic, and at density 1 it is task arithmetic itself."""

from __future__ import annotations

import numpy as np

from luthier.checks._compare import require
from luthier.checks.edits import worlds
from luthier.checks.oracles._edits import agree, arrays
from luthier.core import catalog


def _cls() -> type:
    return catalog.load("edits", __name__.split("edits_")[-1])


def oracle_scaled_or_dropped() -> None:
    for world in worlds(_cls()()):
        states = world.states()
        tuned, base = (arrays(s) for s in states)
        for density, rescale in ((0.1, True), (0.4, True), (0.4, False)):
            out = arrays(_cls()(density=density, rescale=rescale, seed=3).apply(states))
            kept = total = 0
            for name in out:
                scaled = base[name] + (tuned[name] - base[name]) / (density if rescale else 1)
                stays = np.abs(out[name] - scaled) <= 1e-5 * np.maximum(1, np.abs(scaled))
                dropped = np.abs(out[name] - base[name]) <= 1e-6 * np.maximum(1, np.abs(base[name]))
                require(bool((stays | dropped).all()), f"{name}: neither dropped nor scaled by 1/{density}")
                kept, total = kept + int((stays & ~dropped).sum()), total + stays.size
            spread = (density * (1 - density) / total) ** 0.5
            require(abs(kept / total - density) < 6 * spread + 1e-3, f"{kept} of {total} stayed at density {density}")


def oracle_mean_over_draws() -> None:
    world = worlds(_cls()())[0]
    states = [{n: s[n] for n in ("model.layers.0.self_attn.q_proj.weight",)} for s in world.states(3)]
    (name,) = states[0]
    tuned, base = [arrays(s)[name] for s in states[:2]], arrays(states[2])[name]
    draws = [arrays(_cls()(density=0.5, weight=(0.5, 1.0), seed=k).apply(states))[name] for k in range(400)]
    wanted = base + 0.5 * (tuned[0] - base) + (tuned[1] - base)
    gap = np.abs(np.mean(draws, 0) - wanted)
    spread = np.sqrt(0.25 * (tuned[0] - base) ** 2 + (tuned[1] - base) ** 2) / 400**0.5
    require(bool((gap <= 5 * spread + 1e-6).all()), f"the mean over 400 draws is off by {gap.max():.1e}")
    same_place = [(d != base).mean() for d in draws]
    require(abs(float(np.mean(same_place)) - 0.75) < 0.01, "the two models' draws are not independent")


def oracle_density_one() -> None:
    for world in worlds(_cls()()):
        states = world.states(3)
        *tuned, base = [arrays(s) for s in states]
        out = _cls()(density=1.0, weight=(0.5, 1.5), lambda_=0.5).apply(states)
        wanted = {n: b + 0.25 * (tuned[0][n] - b) + 0.75 * (tuned[1][n] - b) for n, b in base.items()}
        agree(out, wanted, f"{world.label} at density 1")
