"""A bare PyTorch loop over tables and output layer, or the last block, by their names: the same weights after ten steps."""

from __future__ import annotations

import re

from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import bare_loop, method

TABLES = (
    r"^(model\.embed_tokens|transformer\.wte|bert\.embeddings\.word_embeddings|shared|lm_head|"
    r"cls\.predictions\.(bias|decoder))\b"
)
LAST = r"^(model\.layers|transformer\.h|bert\.encoder\.layer|decoder\.block)\.1\."
HEAD = r"^classifier\."


def oracle_bare_loop() -> None:
    for world in WORLDS:
        names = {n for n, _ in world.base().named_parameters()}
        for variant, pattern in (("lightweight", TABLES), ("last_block", LAST)):
            moving = {n for n in names if re.search(pattern, n) or re.search(HEAD, n)}
            bare_loop(method(__name__, variant=variant), world, moving, steps=6)
