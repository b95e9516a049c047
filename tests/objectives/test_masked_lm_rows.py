"""Masking draws per data row: splitting, packing or reordering a step does not change what is hidden."""

import numpy as np
import torch

from luthier.checks._models import PAD, texts
from luthier.core import catalog
from luthier.core.batch import collate_text

MASKED = catalog.load("objectives", "masked_lm").example()


def hidden(rows: list[int]) -> dict[int, list[int]]:
    """Data row to the positions hidden in it."""
    batch = MASKED.view(collate_text([texts()[r] for r in rows], PAD), 0, 1, np.random.default_rng(4))
    out: dict[int, list[int]] = {r: [] for r in rows}
    for at in batch.source.tolist():
        b, t = divmod(at, batch.ids.shape[1])
        out[rows[b]].append(t)
    return out


def test_rows_draw_for_themselves() -> None:
    whole = hidden([0, 1, 2, 3])
    assert {**hidden([3, 1]), **hidden([0]), **hidden([2])} == whole
    assert all(whole.values()), "every row hides a token"


def test_visits_differ() -> None:
    batch = collate_text(list(texts()), PAD)
    views = [MASKED.view(batch, 0, 1, np.random.default_rng(s)) for s in range(3)]
    assert len({tuple(v.source.tolist()) for v in views}) > 1
    assert torch.equal(batch.ids, collate_text(list(texts()), PAD).ids)
