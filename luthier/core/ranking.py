"""The largest numbers of many tensors, without holding more than one of them: counted, not sorted.

    chosen = the k largest of all scores; of equal ones, those that come first (by tensor, then by index)

A tensor may come in pieces, one after another under its name.

Scores are not negative, so their bits are ordered as they are. The k-th largest is found 16 bits at a time: a histogram of
the highest bits, then of the next bits of those that share them. Two passes for float32, and one more where equal scores
must be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Scores = Callable[[], Iterable[tuple[str, Tensor]]]
"""Starts again from the first tensor at each call: (name, scores >= 0), all of one dtype, tensors whole or in pieces."""

_AT_ONCE, _COMPARED = 2**22, 8
_BITS = {torch.float64: (torch.int64, 64), torch.float32: (torch.int32, 32)}


@dataclass
class Largest:
    """A choice that is known tensor by tensor.

    value  the smallest score that is chosen; ties  name -> how many of the scores equal to it, where not all are
    """

    value: Tensor | None
    ties: dict[str, int] = field(default_factory=dict)
    some: bool = False

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """True where `scores`, those of tensor `name`, are chosen."""
        return self.masks(name)(scores)

    def masks(self, name: str) -> Callable[[Tensor], Tensor]:
        """The same for pieces of tensor `name`, given in order."""
        room = self.ties.get(name, 0)

        def mask(scores: Tensor) -> Tensor:
            nonlocal room
            if self.value is None:
                return torch.zeros_like(scores, dtype=torch.bool)
            if not self.some:
                return scores >= self.value
            out = scores > self.value
            if room:
                equal = (scores == self.value).nonzero()[:room]
                out[tuple(equal.T)] = True
                room -= len(equal)
            return out

        return mask


def largest(scores: Scores, k: int | Callable[[int], int]) -> Largest:
    """The `k` largest of all `scores` together; k may be told by how many there are (`share_of`)."""
    prefix, left, kind = 0, 0, torch.float32
    shift = None
    while shift is None or shift > 0:
        counts = torch.zeros(2**16, dtype=torch.int64)
        for _, one in scores():
            as_int, width = _BITS[one.dtype]
            kind = one.dtype
            shift_now = width - 16 if shift is None else shift - 16
            for bits in one.contiguous().flatten().view(as_int).split(_AT_ONCE):
                if shift is not None:
                    bits = bits[(bits >> shift) == prefix]
                counts += torch.bincount((bits >> shift_now) & 0xFFFF, minlength=2**16)
        if shift is None:
            left = k(int(counts.sum())) if callable(k) else k
            if left <= 0:
                return Largest(None)
        at = int((counts.flip(0).cumsum(0) >= left).nonzero()[0]) if int(counts.sum()) >= left else 2**16 - 1
        at = 2**16 - 1 - at
        left -= int(counts[at + 1 :].sum())
        prefix = (prefix << 16) | at
        shift = shift_now
    value = torch.tensor(prefix, dtype=_BITS[kind][0]).view(kind)
    if int(counts[at]) <= left:
        return Largest(value)
    ties: dict[str, int] = {}
    for name, one in scores():
        taken = min(left, int((one == value).sum()))
        ties[name] = ties.get(name, 0) + taken
        left -= taken
    return Largest(value, ties, some=True)


def share_of(share: float) -> Callable[[int], int]:
    """A share of n, rounded down."""
    return lambda n: int(share * n + 1e-6)


def all_but(share: float) -> Callable[[int], int]:
    """What stays of n where a share of them, rounded down, goes."""
    return lambda n: n - share_of(share)(n)


def largest_in_rows(scores: Tensor, k: int) -> Tensor:
    """True at the `k` largest of each row of (..., n); of equal ones, those with the lowest index."""
    n = scores.shape[-1]
    if n <= _COMPARED:  # counting who is larger is quicker than sorting
        larger = torch.zeros_like(scores, dtype=torch.uint8)
        for j in range(n):
            for i in range(j):
                wins = scores[..., j] > scores[..., i]
                larger[..., i] += wins
                larger[..., j] += ~wins
        return larger < k
    out = torch.zeros_like(scores, dtype=torch.bool)
    if k > 0:
        order = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
        out.scatter_(-1, order, True)
    return out
