"""A bare PyTorch loop over all tensors gives the same weights after ten steps as the core's loop."""

from __future__ import annotations

from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import bare_loop, method


def oracle_bare_loop() -> None:
    for world in WORLDS:
        bare_loop(method(__name__), world, {n for n, _ in world.base().named_parameters()})
