"""The largest of many numbers, told in pieces, against a stable sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.core.ranking import largest, largest_in_rows, share_of


def _scores(levels: int, n: int = 5000) -> Tensor:
    """Few levels: most scores have equals."""
    return torch.randint(levels, (n,), generator=torch.Generator().manual_seed(levels)).float() / levels


def _sorted(scores: Tensor, k: int) -> np.ndarray:
    chosen = np.zeros(scores.numel(), bool)
    chosen[np.argsort(-scores.numpy().ravel(), kind="stable")[:k]] = True
    return chosen


@pytest.mark.parametrize("levels", [1, 7, 10**6])
@pytest.mark.parametrize("piece", [1, 37, 5000])
def test_pieces_of_two_tensors_are_ranked_as_one_list(levels: int, piece: int) -> None:
    scores = _scores(levels)
    named = {"a": scores[:1800], "b": scores[1800:]}

    def told() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named.items():
            yield from ((name, part) for part in tensor.split(piece))

    for share in (0.0, 0.0001, 0.3, 1.0):
        choice = largest(told, share_of(share))
        found = []
        for name, tensor in named.items():
            mask = choice.masks(name)
            found += [mask(part) for part in tensor.split(piece)]
        wanted = _sorted(scores, int(share * 5000 + 1e-6))
        assert np.array_equal(torch.cat(found).numpy(), wanted), share


@pytest.mark.parametrize("n", [1, 4, 8, 9, 40])
@pytest.mark.parametrize("levels", [2, 10**6])
def test_rows_keep_the_first_of_equals(n: int, levels: int) -> None:
    scores = _scores(levels, 30 * n).view(3, 10, n)
    for k in {0, 1, n // 2, n}:
        found = largest_in_rows(scores, k)
        for row, mask in zip(scores.view(-1, n), found.view(-1, n), strict=True):
            assert np.array_equal(mask.numpy(), _sorted(row, k)), (n, k)
