"""Matrices that several places share, each through a binary mask of its own, learned by scores.

    m_ij = 1  iff  s_ij is among the round(keep P Q) largest scores of its matrix      s (P, Q), ties by place
    d loss / d s_ij = w_ij  d loss / d (m_ij w_ij)                                      the straight-through estimate

A mask at rest is one bit an element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.core.method import LuthierError

BITS = 8


class Masks(nn.Module):
    """Masks of matrices by name; `at_rest` they are bits that nothing trains."""

    def __init__(self, shapes: dict[str, tuple[int, int]], keep: float, at_rest: bool = False):
        super().__init__()
        self.shapes, self.keep, self.at_rest = shapes, keep, at_rest
        self.scores = nn.ParameterDict()
        for name, shape in shapes.items():
            if at_rest:
                size = -(-shape[0] * shape[1] // BITS)
                self.register_buffer(f"{name}_bits", torch.zeros(size, dtype=torch.uint8))
            else:
                self.scores[name] = nn.Parameter(torch.empty(shape))
                nn.init.kaiming_uniform_(self.scores[name], a=math.sqrt(5))

    def mask(self, name: str) -> Tensor:
        """(P, Q) of 0 and 1, without gradient."""
        shape = self.shapes[name]
        if self.at_rest:
            bits: Tensor = getattr(self, f"{name}_bits")
            flat = bits[:, None].bitwise_right_shift(torch.arange(BITS, device=bits.device)).bitwise_and(1).flatten()
            return flat[: shape[0] * shape[1]].view(shape)
        scores = self.scores[name].detach().flatten()
        kept = scores.sort(descending=True, stable=True).indices[: kept_of(shape, self.keep)]
        return torch.zeros_like(scores).index_fill_(0, kept, 1.0).view(shape)

    def through(self, name: str, weight: Tensor) -> Tensor:
        """The matrix `name` of what is shared, as this place sees it; whole, where it has no mask."""
        if name not in self.shapes:
            return weight
        mask = self.mask(name).to(weight)
        if not self.at_rest:
            scores = self.scores[name]
            mask = mask + (scores - scores.detach())  # adds exactly 0, and hands the gradient on
        return weight * mask

    def resting(self) -> Masks:
        """The same masks as bits."""
        out = Masks(self.shapes, self.keep, at_rest=True)
        for name, (rows, columns) in self.shapes.items():
            flat = self.mask(name).flatten().to(torch.uint8)
            flat = torch.cat([flat, flat.new_zeros(-rows * columns % BITS)]).view(-1, BITS)
            packed = (flat << torch.arange(BITS, device=flat.device, dtype=torch.uint8)).sum(1).to(torch.uint8)
            setattr(out, f"{name}_bits", packed)
        return out


def check_keep(keep: float) -> None:
    """Raises LuthierError unless a mask may let this share through."""
    if not 0 < keep <= 1:
        raise LuthierError(f"tuner.keep is {keep}: a number above 0 and at most 1")


def kept_of(shape: tuple[int, int], keep: float) -> int:
    """Elements that a mask lets through."""
    return max(1, round(keep * shape[0] * shape[1]))
