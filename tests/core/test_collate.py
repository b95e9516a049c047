"""The scored positions of every layout, against the definition written as plain loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.core.batch import (
    Batch,
    GroupExample,
    SourceTargetExample,
    TextExample,
    collate_groups,
    collate_packed,
    collate_source_target,
    collate_text,
)

PAD = 0


def _texts(seed: int, n: int = 7) -> list[TextExample]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, n)
    return [
        TextExample(i, rng.integers(1, 50, k).tolist(), rng.random(k).round().astype(bool).tolist())
        for i, k in enumerate(sizes)
    ]


def _groups(seed: int) -> list[GroupExample]:
    rng = np.random.default_rng(seed)
    return [
        GroupExample(
            i,
            rng.integers(1, 50, rng.integers(1, 6)).tolist(),
            [rng.integers(1, 50, rng.integers(1, 5)).tolist() for _ in range(rng.integers(1, 4))],
        )
        for i in range(4)
    ]


def _listed(batch: Batch) -> list[tuple[int, int, int]]:
    assert batch.source.dtype == batch.target.dtype == batch.owner.dtype == torch.long
    return list(zip(batch.source.tolist(), batch.target.tolist(), batch.owner.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("side", ["right", "left"])
def test_text(seed: int, side: str) -> None:
    examples = _texts(seed)
    batch = collate_text(examples, PAD, side)
    width, expected = batch.ids.shape[1], []
    for b, e in enumerate(examples):
        base = b * width + (width - len(e) if side == "left" else 0)
        expected += [(base + t - 1, e.ids[t], b) for t in range(1, len(e)) if e.counts[t]]
    assert _listed(batch) == expected


@pytest.mark.parametrize("seed", range(5))
def test_packed(seed: int) -> None:
    examples = _texts(seed)
    batch = collate_packed([examples[:3], examples[3:]], PAD)
    expected, owner = [], 0
    for b, row in enumerate((examples[:3], examples[3:])):
        at = b * batch.ids.shape[1]
        for e in row:
            expected += [(at + t - 1, e.ids[t], owner) for t in range(1, len(e)) if e.counts[t]]
            at, owner = at + len(e), owner + 1
    assert _listed(batch) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [True, False])
def test_groups(seed: int, share: bool) -> None:
    examples = _groups(seed)
    batch = collate_groups(examples, PAD, share_prompt=share)
    width, expected, owner = batch.ids.shape[1], [], 0
    for b, e in enumerate(examples):
        n = len(e.prompt)
        at = b * width + n
        for a in e.answers:
            if not share:
                at = owner * width + n
            first = (b if share else owner) * width + n - 1
            expected += [(first if t == 0 else at + t - 1, token, owner) for t, token in enumerate(a)]
            at, owner = at + len(a), owner + 1
    assert _listed(batch) == expected


def test_source_target() -> None:
    examples = [SourceTargetExample(0, [5, 6, 7], [8, 9]), SourceTargetExample(1, [5], [4, 3, 2])]
    batch = collate_source_target(examples, PAD, start=1)
    assert _listed(batch) == [(0, 8, 0), (1, 9, 0), (3, 4, 1), (4, 3, 1), (5, 2, 1)]


def test_nothing_counts() -> None:
    batch = collate_text([TextExample(0, [3], [True]), TextExample(1, [3, 4], [False, False])], PAD)
    assert _listed(batch) == []
