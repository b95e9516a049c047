"""Context SFT against a float64 loop: on a plain model, and as the text of the context written out before each row."""

from __future__ import annotations

import torch

from luthier.checks import tuners
from luthier.checks._compare import close, require
from luthier.checks._models import WORLDS
from luthier.checks.objectives import Plain
from luthier.checks.oracles.objectives_sft import equation as equation  # without a context it is plain SFT
from luthier.checks.oracles.objectives_sft import start as start
from luthier.core import catalog
from luthier.core.logprobs import Scorer


@torch.no_grad()
def oracle_written_out() -> None:
    """An untrained context is text: a plain model in float64 reads it before every row, labels weighted by hand."""
    ids, types = (2, 11, 40, 42, 3, 13, 41, 3, 15, 44), (0, 2, 4, 4, 0, 6, 8, 0, 10, 12)
    weight = {4: 0.7**3, 8: 0.7**2, 12: 0.7}
    tuner = catalog.load("tuners", "cpt")(ids=ids, types=types)
    objective = catalog.load("objectives", "context_sft")(decay=0.7)
    for world in (w for w in WORLDS if w.kind == "decoder"):
        plain, rows = Plain(world.base().double()), list(world.examples)
        total, n = torch.zeros((), dtype=torch.float64), 0
        for e in rows:
            logp = plain.logp([*ids, *e.ids])
            for j, type_ in enumerate(types):
                if type_ in weight:
                    total = total - weight[type_] * logp[j - 1, ids[j]]
            for t in range(1, len(e.ids)):
                if e.counts[t]:
                    total, n = total - logp[len(ids) + t - 1, e.ids[t]], n + 1
        model = tuners.wrapped(tuner, world)
        for batch in (world.batch(), world.batch(side="left"), world.packed()):
            loss = objective.compute(Scorer(model), batch)
            require(loss.weight == n, f"{world.label}: weight {loss.weight}, {n} scored tokens")
            close(loss.sum / n, (total / n).float(), f"{world.label}: loss and that of the text")
