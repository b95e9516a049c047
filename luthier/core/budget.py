"""Choosing under a budget of operations: the most important set of units that a step can afford, exactly.

    maximise  sum_{k in m} I_k    subject to    T(m) = sum_R f_R [R meets m] <= budget          (GraphCost, core/flops.py)

What T counts beside each unit's own gradient is shared: gradients that pass through operators. Which of them run is a
*frontier*: the union, over chosen units, of what lies between each and the loss. In a chain there is one frontier a
unit (its depth); parallel branches add a few. For each frontier within the budget the rest is a knapsack over the units
that it reaches, and each knapsack extends the table of a smaller frontier. The best frontier is the exact answer: a set
that is cheaper than its frontier is counted at its own frontier as well.

Tables hold the undominated (operations, importance) pairs in whole operations: nothing is rounded. Where more than
`PAIRS` remain, the best of each of as many equal shares of the budget is kept, so no answer is ever over budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.flops import GraphCost
from luthier.core.method import LuthierError

PAIRS = 8192
FRONTIERS = 20_000


@dataclass
class _Table:
    """Undominated pairs of a knapsack, cheapest first; each knows the pair of `parent` that it came from."""

    flops: np.ndarray
    value: np.ndarray
    parent: _Table | None = None
    came: np.ndarray | None = None
    taken: np.ndarray | None = None
    unit: int = -1

    def with_unit(self, unit: int, flops: int, value: float, room: int) -> _Table:
        """The table when `unit` may be taken as well."""
        n = len(self.flops)
        fits = self.flops + flops <= room
        costs = np.concatenate([self.flops, self.flops[fits] + flops])
        values = np.concatenate([self.value, self.value[fits] + value])
        came = np.concatenate([np.arange(n), np.flatnonzero(fits)])
        order = np.lexsort((-values, costs))
        best = np.maximum.accumulate(values[order])
        keep = np.concatenate([[True], best[1:] > best[:-1]])
        order = order[keep]
        if len(order) > PAIRS:  # the last, and best, pair of each share of the budget
            share = (costs[order] * PAIRS) // max(room, 1)
            order = order[np.concatenate([share[1:] != share[:-1], [True]])]
        return _Table(costs[order], values[order], self, came[order].astype(np.int32), order >= n, unit)

    def units(self, at: int) -> int:
        """The set (bits) behind pair `at`."""
        bits, table = 0, self
        while table.parent is not None:
            assert table.came is not None and table.taken is not None
            if table.taken[at]:
                bits |= 1 << table.unit
            at, table = int(table.came[at]), table.parent
        return bits


@dataclass(frozen=True)
class Chosen:
    """`bits` are the units; their `value` and the operations `flops` of their backward pass."""

    bits: int
    value: float
    flops: int


def best_set(cost: GraphCost, importance: Sequence[float], budget: int, always: int = 0) -> Chosen:
    """The most important set whose backward pass costs at most `budget`. The units in `always` are in it, worth nothing."""
    units = range(len(cost.units))
    own, paths = [0] * len(cost.units), []
    for behind, flops in cost.shared.items():
        if behind & (behind - 1):
            paths.append((behind, flops))
        elif behind:
            own[behind.bit_length() - 1] += flops
    above = [sum(1 << i for i, (behind, _) in enumerate(paths) if behind >> k & 1) for k in units]
    useful = [k for k in units if importance[k] > 0 and not always >> k & 1]
    start, spent = 0, 0
    for k in units:
        if always >> k & 1:
            start |= above[k]
            spent += own[k]

    def shared(frontier: int) -> int:
        return sum(flops for i, (_, flops) in enumerate(paths) if frontier >> i & 1)

    frontiers = _frontiers(start, {start | above[k] for k in useful}, lambda f: shared(f) + spent <= budget)
    tables: dict[int, tuple[_Table, frozenset[int]]] = {}
    best = Chosen(always, 0.0, cost.backward(always))
    for frontier in sorted(frontiers, key=lambda f: (f.bit_count(), f)):
        room = budget - spent - shared(frontier)
        reached = [k for k in useful if above[k] & ~frontier == 0]
        table, has = _Table(np.zeros(1, np.int64), np.zeros(1)), frozenset[int]()
        for smaller, kept in tables.items():
            if smaller & ~frontier == 0 and len(kept[1]) > len(has):
                table, has = kept
        for k in sorted(set(reached) - has, key=lambda k: own[k]):
            table = table.with_unit(k, own[k], importance[k], room)
        tables[frontier] = (table, frozenset(reached))
        at = int(np.searchsorted(table.flops, room, side="right")) - 1
        if at >= 0 and table.value[at] > best.value:
            bits = table.units(at) | always
            best = Chosen(bits, float(table.value[at]), cost.backward(bits))
    return best


def _frontiers(start: int, steps: Iterable[int], fits: Callable[[int], bool]) -> set[int]:
    """All unions of `steps` with `start` that fit."""
    found = {start} if fits(start) else set()
    for step in sorted(steps, key=lambda s: (s.bit_count(), s)):
        found |= {union for union in {f | step for f in found} - found if fits(union)}
        if len(found) > FRONTIERS:
            raise LuthierError(
                "this model has too many parallel branches to choose among exactly: give fewer candidates (targets)"
            )
    return found


def backward_budget(share: float, cost: GraphCost, key: str) -> int:
    """Operations left for the backward pass when forward and backward together may cost `share` of a full step."""
    if not 0 < share <= 1:
        raise LuthierError(f"{key} is {share}: a number above 0 and at most 1")
    room = int(share * (cost.forward + cost.full)) - cost.forward
    cheapest = min((cost.backward(1 << k) for k in range(len(cost.units))), default=0)
    if room < cheapest:
        least = (cost.forward + cheapest) / (cost.forward + cost.full)
        raise LuthierError(
            f"{key} is {share:.3f} of a full step, but the forward pass and the cheapest unit cost {least:.3f}: raise it"
        )
    return room


def note(cost: GraphCost, chosen: Chosen, importance: Sequence[float], room: int) -> dict[str, object]:
    """What a choice rests on, for the record. Operations are those of the probe's batches."""
    names = cost.names(chosen.bits)
    peak = max((abs(v) for v in importance), default=0.0) or 1.0
    value = dict(zip(cost.units, importance, strict=True))
    return {
        "chosen": names,
        "importance": {n: round(value[n] / peak, 4) for n in names},
        "captured": chosen.value / (sum(v for v in importance if v > 0) or 1.0),
        "forward_flops": cost.forward,
        "backward_flops": chosen.flops,
        "backward_budget": room,
        "full_flops": cost.forward + cost.full,
        "share_of_full": (cost.forward + chosen.flops) / (cost.forward + cost.full),
    }
