"""How checks compare: one table of tolerances, and messages that say by how much."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference between two ways to the same number, relative to the larger of 1 and the largest number."""

VISIBLE = 1e-3
"""A change must be larger than this to count as one. Nothing honest lies between tolerance and this."""


class CheckFailed(AssertionError):
    """A method does not keep its contract. The message says what was compared and how far apart it was."""


def require(holds: bool, message: str) -> None:
    """An assertion that `python -O` keeps."""
    if not holds:
        raise CheckFailed(message)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or one is not finite."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    gap = (a.detach().double() - b.detach().double()).abs().max().item()
    return gap if gap == gap else float("inf")


def same(a: Tensor, b: Tensor, what: str) -> None:
    """Equal to the last bit."""
    require(a.dtype == b.dtype, f"{what}: {a.dtype} is not {b.dtype}")
    require(torch.equal(a, b), f"{what}: not bit-equal, largest difference {distance(a, b):.1e}")


def close(a: Tensor, b: Tensor, what: str) -> None:
    """Equal within the tolerance of the coarser dtype."""
    relative = max(TOLERANCE[a.dtype], TOLERANCE[b.dtype])
    scale = max(1.0, b.detach().abs().max().item()) if b.numel() else 1.0
    gap = distance(a, b)
    require(gap <= relative * scale, f"{what}: differ by {gap:.1e}, more than {relative * scale:.1e}")


def differ(a: Tensor, b: Tensor, what: str) -> None:
    """Visibly not equal."""
    gap = distance(a, b)
    require(gap > VISIBLE, f"{what}: no visible difference ({gap:.1e})")


def finite(x: Tensor, what: str) -> None:
    require(bool(torch.isfinite(x).all()), f"{what}: not finite")
