"""The largest numbers of many tensors, without holding more than one of them: counted, not sorted.

    chosen = the k largest of all scores; of equal ones, those that come first (by tensor, then by index)

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
"""Starts again from the first tensor at each call: (name, scores >= 0), all of one dtype."""

_AT_ONCE = 2**22
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
        if self.value is None:
            return torch.zeros_like(scores, dtype=torch.bool)
        if not self.some:
            return scores >= self.value
        out = scores > self.value
        room = self.ties.get(name, 0)
        if room:
            equal = (scores == self.value).flatten().nonzero().flatten()[:room]
            out.view(-1)[equal] = True
        return out


def largest(scores: Scores, k: int) -> Largest:
    """The `k` largest of all `scores` together."""
    if k <= 0:
        return Largest(None)
    prefix, left, kind = 0, k, torch.float32
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
        at = int((counts.flip(0).cumsum(0) >= left).nonzero()[0]) if int(counts.sum()) >= left else 2**16 - 1
        at = 2**16 - 1 - at
        left -= int(counts[at + 1 :].sum())
        prefix = (prefix << 16) | at
        shift = shift_now
    value = torch.tensor(prefix, dtype=_BITS[kind][0]).view(kind)
    if int(counts[at]) <= left:
        return Largest(value)
    ties = {}
    for name, one in scores():
        ties[name] = min(left, int((one == value).sum()))
        left -= ties[name]
    return Largest(value, ties, some=True)


def largest_in_rows(scores: Tensor, k: int) -> Tensor:
    """True at the `k` largest of each row of (..., n); of equal ones, those with the lowest index."""
    out = torch.zeros_like(scores, dtype=torch.bool)
    if k > 0:
        order = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
        out.scatter_(-1, order, True)
    return out
