"""Rounding to a quantised base's levels, against a search over all of them."""

from __future__ import annotations

import pytest
import torch

from luthier.core.method import LuthierError
from luthier.core.quantise import BLOCK, NF4, bits, quantised


@pytest.mark.parametrize("shape", [(4, 64), (5, 48), (3, 7)])
def test_nf4_is_the_nearest_level_of_its_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    out = quantised(weight, "nf4").flatten().double()
    flat = weight.flatten().double()
    for start in range(0, len(flat), BLOCK):
        block, found = flat[start : start + BLOCK], out[start : start + BLOCK]
        levels = torch.tensor(NF4, dtype=torch.float64) * block.abs().max()
        gaps = (block[:, None] - levels).abs()
        assert torch.allclose((block - found).abs(), gaps.min(1).values, atol=1e-6)
        assert ((found[:, None] - levels).abs().min(1).values < 1e-6).all()
    assert torch.allclose(quantised(quantised(weight, "nf4"), "nf4"), quantised(weight, "nf4"))


def test_nf4_levels_are_those_of_normal_quantiles() -> None:
    """The paper's construction: quantiles of a normal distribution, an exact zero, both ends at one."""
    normal, offset = torch.distributions.Normal(0.0, 1.0), 0.9677083
    up = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    down = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([down, torch.zeros(1, dtype=torch.float64), up.flip(0)])
    assert torch.allclose(
        (levels / levels.abs().max()).sort().values, torch.tensor(NF4, dtype=torch.float64), atol=1e-6
    )


def test_int8_is_the_nearest_of_its_row() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    out = quantised(weight, "int8")
    for row, found in zip(weight, out, strict=True):
        step = float(row.abs().max()) / 127
        assert (row - found).abs().max() <= step / 2 + 1e-7
        assert (
            torch.equal(found, torch.zeros(20)) if step == 0 else torch.allclose((found / step).round() * step, found)
        )


def test_sizes_and_names() -> None:
    assert bits("nf4", 128) == 4.5
    assert bits("int8", 64) == 8.5
    assert quantised(torch.ones(2, 3).bfloat16(), "nf4").dtype == torch.bfloat16
    assert torch.equal(quantised(torch.zeros(2, 3), "nf4"), torch.zeros(2, 3))
    with pytest.raises(LuthierError, match="nf4, int8"):
        quantised(torch.ones(2, 2), "int3")


def test_nf4_levels_are_those_of_bitsandbytes() -> None:
    """Where that package is installed."""
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.allclose(functional.get_4bit_type("nf4", device="cpu").float(), torch.tensor(NF4), atol=1e-6)
