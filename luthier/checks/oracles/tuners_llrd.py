"""A bare PyTorch loop whose rates are written down by hand for every tensor: the same weights after ten steps."""

from __future__ import annotations

import re

from luthier.checks._compare import require
from luthier.checks._models import LAYERS, WORLDS, World
from luthier.checks.oracles._tuners import bare_loop, method

BLOCK = re.compile(r"^(?:model\.layers|transformer\.h|bert\.encoder\.layer|(?:encoder|decoder)\.block)\.(\d+)\.")
EMBEDDINGS = re.compile(r"^(model\.embed_tokens|transformer\.(wte|wpe)|bert\.embeddings|shared)\.")


def rates(world: World, decay: float) -> dict[str, float]:
    """Head eta, block l eta decay^(L - l), embeddings eta decay^(L + 1)."""
    out = {}
    for name, _ in world.base().named_parameters():
        block = BLOCK.match(name)
        power = LAYERS - int(block[1]) if block else LAYERS + 1 if EMBEDDINGS.match(name) else 0
        out[name] = decay**power
    return out


def oracle_closed_form() -> None:
    """Every parameter is in exactly one group, at the rate of the closed form."""
    tuner = method(__name__)
    for world in WORLDS:
        told = [(n, g["lr_scale"]) for g in tuner.groups(world.base()) for n in g["params"]]
        require(len(told) == len({n for n, _ in told}), f"{world.label}: a parameter is in two groups")
        require(dict(told) == rates(world, tuner.decay), f"{world.label}: rates differ from the closed form")


def oracle_bare_loop() -> None:
    """With a strong decay, and with none: then it is full fine-tuning, step for step."""
    for decay in (0.5, 1.0):
        for world in WORLDS:
            wanted = rates(world, decay)
            bare_loop(method(__name__, decay=decay), world, set(wanted), rates=wanted)
