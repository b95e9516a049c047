"""Masks by a plain sort, bits by Python's own integers, and the straight-through gradient written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close, require, same
from luthier.tuners._masks import Masks


def kept(scores: Tensor, keep: float) -> Tensor:
    """1 at the largest scores, by a stable sort of (score, place)."""
    flat = scores.flatten().tolist()
    count = max(1, round(keep * len(flat)))
    best = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count]
    out = torch.zeros(len(flat), dtype=torch.float64)
    out[best] = 1.0
    return out.view(scores.shape)


def straight_through(keep: float) -> None:
    """Gradients of scores and weights by the formula; a mask at rest is the same, in one bit an element."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(2)
        masks = Masks({"W": (5, 7)}, keep).double()
        weight = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        x = torch.randn(3, 7, dtype=torch.float64)
        upstream = torch.randn(3, 5, dtype=torch.float64)
        ((x @ masks.through("W", weight).T) * upstream).sum().backward()
    scores: Any = masks.scores["W"]
    of_product = upstream.T @ x  # d loss / d (m w)
    mask = kept(scores.detach(), keep)
    same(masks.mask("W"), mask, "mask and plain sort")
    close(weight.grad, mask * of_product, "gradient of the shared matrix")  # type: ignore[arg-type]
    close(scores.grad, weight.detach() * of_product, "straight-through gradient of the scores")
    rest = masks.resting()
    bits = "".join(f"{byte:08b}"[::-1] for byte in rest.W_bits.tolist())  # type: ignore[operator, union-attr]
    require([int(b) for b in bits[:35]] == mask.flatten().int().tolist(), "bits of the mask at rest")
    same(rest.through("W", weight.detach()), weight.detach() * mask, "what a mask at rest lets through")
    require(len(rest.W_bits) == 5, f"35 elements take {len(rest.W_bits)} bytes")  # type: ignore[arg-type]
