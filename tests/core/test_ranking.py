"""The k largest of many tensors, by counting: what sorting finds, ties included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from luthier.core.ranking import largest, largest_in_rows, share_of


def _by_sorting(tensors: dict[str, Tensor], k: int) -> np.ndarray:
    flat = np.concatenate([t.double().numpy().ravel() for t in tensors.values()])
    out = np.zeros(len(flat), bool)
    out[np.argsort(-flat, kind="stable")[:k]] = True
    return out


def _found(tensors: dict[str, Tensor], k: int) -> np.ndarray:
    choice = largest(tensors.items, k)
    return np.concatenate([choice.mask(n, t).numpy().ravel() for n, t in tensors.items()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), values=st.sampled_from([2, 5, 10**9]))
def test_is_what_sorting_finds(dtype: torch.dtype, seed: int, share: float, values: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 5), (1,), (4, 2, 2), (7,)]
    tensors = {
        str(i): (torch.randint(values, s, generator=generator).to(dtype) * 1e-3).to(dtype) for i, s in enumerate(shapes)
    }
    k = int(share * 39)
    assert (_found(tensors, k) == _by_sorting(tensors, k)).all()


def test_small_and_large_numbers_and_too_many() -> None:
    tensors = {"a": torch.tensor([0.0, 1e-45, 1e-30, 3e38]), "b": torch.tensor([[1e-30, 0.0]])}
    for k in range(9):
        assert (_found(tensors, k) == _by_sorting(tensors, k)).all(), k


def test_a_tensor_is_told_alone() -> None:
    """Ties are shared out before any mask is made: the second tensor's mask does not need the first's."""
    tensors = {"a": torch.ones(4), "b": torch.ones(4)}
    choice = largest(tensors.items, 6)
    assert choice.mask("b", tensors["b"]).tolist() == [True, True, False, False]
    assert choice.mask("a", tensors["a"]).all()


@pytest.mark.parametrize("values", [1, 7, 10**6])
@pytest.mark.parametrize("piece", [1, 37, 5000])
def test_pieces_are_ranked_as_one_list(values: int, piece: int) -> None:
    scores = torch.randint(values, (5000,), generator=torch.Generator().manual_seed(values)).float() / values
    named = {"a": scores[:1800], "b": scores[1800:]}

    def told() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named.items():
            yield from ((name, part) for part in tensor.split(piece))

    for share in (0.0, 0.0001, 0.3, 1.0):
        choice, found = largest(told, share_of(share)), []
        for name, tensor in named.items():
            mask = choice.masks(name)
            found += [mask(part) for part in tensor.split(piece)]
        assert np.array_equal(torch.cat(found).numpy(), _by_sorting(named, int(share * 5000 + 1e-6))), share


@pytest.mark.parametrize("n", [1, 4, 8, 9, 40])  # short rows are compared, long ones sorted
@given(seed=st.integers(0, 10**6), k=st.integers(0, 41), values=st.sampled_from([2, 4, 10**6]))
def test_rows(n: int, seed: int, k: int, values: int) -> None:
    k = min(k, n)
    scores = torch.randint(values, (5, n), generator=torch.Generator().manual_seed(seed)).float()
    mask = largest_in_rows(scores, k)
    for row, chosen in zip(scores, mask, strict=True):
        assert (chosen.numpy() == _by_sorting({"x": row}, k)).all()
