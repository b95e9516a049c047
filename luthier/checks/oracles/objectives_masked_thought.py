"""Masked thought against a float64 loop over what the model was shown, and its draws against the stated shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.core import catalog
from luthier.core.batch import SourceTargetExample, TextExample, collate_text

_NAME = __name__.split("objectives_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """- log pi(original token | shown past), over all tokens that count."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for b, e in enumerate(examples):
        if isinstance(e, SourceTargetExample):
            logp = policy.decoder_logp(e.ids, batch.decoder_ids[b, : len(e.target)].tolist())
            for t, token in enumerate(e.target):
                total, n = total - logp[t, token], n + 1
            continue
        logp = policy.logp(batch.ids[b, : len(e.ids)].tolist())
        for t in range(1, len(e.ids)):
            if e.counts[t]:
                total, n = total - logp[t - 1, e.ids[t]], n + 1
    return total, float(n)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def oracle_shares() -> None:
    """Holes are in answers alone, as many as p(s) says within three standard deviations; random ones are ordinary."""
    objective = replace(catalog.load("objectives", _NAME).example(), ramp=0.5)
    long = [TextExample(r, [20 + t % 40 for t in range(400)], [t >= 100 for t in range(400)]) for r in range(50)]
    plain = collate_text(long, PAD)
    places = 50 * 300
    for step, share in ((0, 0.0), (250, 0.2), (500, 0.4), (999, 0.4)):
        batch = objective.view(plain, step, 1000, np.random.default_rng(1))
        changed = batch.ids != plain.ids
        found = int(changed.sum())
        room = 3 * math.sqrt(places * share * (1 - share))
        require(
            abs(found - share * places) <= room, f"step {step}: {found} holes, stated {share * places:.0f} ± {room:.0f}"
        )
        require(not changed[:, :100].any(), f"step {step}: a question was changed")
        require(bool((batch.ids[changed] == objective.mask_id).all()), "a hole holds another token than the mask")
        require(batch.target is plain.target, "a label was changed")
    batch = replace(objective, kind="random").view(plain, 999, 1000, np.random.default_rng(1))
    drawn = batch.ids[batch.ids != plain.ids]
    require(not set(drawn.tolist()) & set(objective.special), "a special token was drawn")
    require(drawn.unique().numel() == objective.vocabulary - len(objective.special), "some ordinary token never came")
