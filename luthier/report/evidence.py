"""Evidence: results as typed values, and the only rules by which a report calls two numbers different.

Before and after (one run):   the verdict of the paired test in results.json; where it is missing, the 95% interval of
                              the difference decides; where that is missing too, nothing is claimed.
Method against method:        |mean_a - mean_b| > sqrt(seeds^2 + items^2)
    seeds    half width of the Welch 95% interval of the difference of the means over seeds
    items    sqrt(h_a^2 + h_b^2), h the half width of a run's 95% interval over its test items, averaged over seeds
With a single seed the first term is unknown, so no difference is claimed. The items are the same for all methods, which
makes the second term cautious: it can hide a small difference, it cannot invent one. Pairs are judged one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("target", "safety", "retention", "drift")
RATES = frozenset({"ece", "brier", "error", "error_rate", "refusal_rate"})

# Student's t, two-sided 95%, by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T95_INFINITE = 1.960


def real(value: Any) -> float | None:
    """A finite float, or None: text, null, NaN and infinity are all 'not measured'."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one, so that a missing section reads as empty."""
    return value if isinstance(value, Mapping) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list, else an empty list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Measure:
    """One metric of one model on one task, with its 95% interval over the test items."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    higher_is_better: bool | None = None
    unit: str = ""

    @property
    def half_width(self) -> float:
        """Half of the interval; 0 where no interval was measured."""
        return (self.high - self.low) / 2 if self.low is not None and self.high is not None else 0.0


def measure(entry: Any) -> Measure | None:
    """A Measure from its JSON form; None where there is no finite value."""
    entry = mapping(entry)
    value = real(entry.get("value"))
    if value is None:
        return None
    n, higher = real(entry.get("n")), entry.get("higher_is_better")
    return Measure(
        value=value,
        low=real(entry.get("low")),
        high=real(entry.get("high")),
        n=None if n is None else int(n),
        higher_is_better=higher if isinstance(higher, bool) else None,
        unit=str(entry.get("unit") or ""),
    )


@dataclass(frozen=True)
class Change:
    """One metric of one task before and after tuning, and what the paired test says about the difference."""

    task: str
    title: str
    group: str
    metric: str
    main: bool = True
    note: str = ""
    base: Measure | None = None
    tuned: Measure | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""
    n: int | None = None
    stated: str = ""

    @property
    def higher_is_better(self) -> bool | None:
        """The direction, from either measurement."""
        for side in (self.tuned, self.base):
            if side is not None and side.higher_is_better is not None:
                return side.higher_is_better
        return None

    @property
    def unit(self) -> str:
        """The unit, from either measurement."""
        return next((side.unit for side in (self.tuned, self.base) if side is not None and side.unit), "")

    @property
    def verdict(self) -> str:
        """better, worse, same, or '' where nothing may be claimed."""
        if self.stated:
            return self.stated
        if self.low is None or self.high is None or self.higher_is_better is None:
            return ""
        if self.low <= 0 <= self.high:
            return "same"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"

    @property
    def is_rate(self) -> bool:
        """Whether the metric is a share of items, so that a difference is told in points (hundredths)."""
        sides = [side for side in (self.base, self.tuned) if side is not None]
        if not sides or self.unit not in ("", "share", "fraction", "proportion"):
            return False
        named = self.metric in RATES or self.metric.endswith("_rate") or self.higher_is_better is True
        bounds = [bound for side in sides for bound in (side.value, side.low, side.high) if bound is not None]
        return named and min(bounds) >= 0 and max(bounds) <= 1


def _paired(entry: Any, base: Measure | None, tuned: Measure | None) -> dict[str, Any]:
    """The fields of a Change that come from the paired test."""
    entry = mapping(entry)
    difference = real(entry.get("difference"))
    if difference is None and base is not None and tuned is not None:
        difference = tuned.value - base.value
    n = real(entry.get("n"))
    if n is None and base is not None and tuned is not None and base.n == tuned.n and base.n is not None:
        n = base.n
    stated = entry.get("verdict")
    return {
        "difference": difference,
        "low": real(entry.get("low")),
        "high": real(entry.get("high")),
        "p": real(entry.get("p")),
        "test": str(entry.get("test") or ""),
        "n": None if n is None else int(n),
        "stated": stated if stated in ("better", "worse", "same") else "",
    }


def _names(*sources: Mapping[str, Any]) -> list[str]:
    """Keys of all sources in order of first appearance."""
    return list(dict.fromkeys(str(key) for source in sources for key in source))


def changes(results: Any) -> list[Change]:
    """Every metric of every task, main metric first, in the order target, retention, drift, other."""
    results = mapping(results)
    tasks, base, tuned, paired = (mapping(results.get(key)) for key in ("tasks", "base", "tuned", "paired"))
    found = []
    for task in _names(tasks, base, tuned):
        about, before, after = mapping(tasks.get(task)), mapping(base.get(task)), mapping(tuned.get(task))
        metrics = _names(before, after)
        main = about.get("metric") or (metrics[0] if metrics else "")
        group = about.get("group")
        for metric in dict.fromkeys([*(name for name in metrics or [main] if name == main), *metrics]):
            one, two = measure(before.get(metric)), measure(after.get(metric))
            found.append(
                Change(
                    task=task,
                    title=str(about.get("title") or task),
                    group=group if group in GROUPS else "other",
                    metric=str(metric),
                    main=metric == main,
                    note=str(about.get("note") or "") if metric == main else "",
                    base=one,
                    tuned=two,
                    **_paired(mapping(paired.get(task)).get(metric), one, two),
                )
            )
    order = {group: place for place, group in enumerate((*GROUPS, "other"))}
    return sorted(found, key=lambda change: order[change.group])


@dataclass(frozen=True)
class Spread:
    """A figure of one method over its seeds. `items` is the mean half width over test items, 0 for costs."""

    values: tuple[float, ...]
    items: float = 0.0

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Arithmetic mean over seeds."""
        return min(max(math.fsum(self.values) / self.n, min(self.values)), max(self.values))

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1); None for one seed."""
        if self.n < 2:
            return None
        if max(self.values) == min(self.values):
            return 0.0
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.n - 1))


def spread(values: Sequence[float | None], items: Sequence[float] = ()) -> Spread | None:
    """The Spread of what was measured; None where nothing was."""
    kept = tuple(value for value in values if value is not None)
    return Spread(kept, math.fsum(items) / len(items) if items else 0.0) if kept else None


def t95(freedom: float) -> float:
    """Student's t for a two-sided 95% interval, interpolated in 1/freedom."""
    if freedom <= 1:
        return _T95[0]
    last = len(_T95)
    if freedom >= last:
        return _T95_INFINITE + (_T95[-1] - _T95_INFINITE) * last / freedom
    below = int(freedom)
    weight = (1 / below - 1 / freedom) / (1 / below - 1 / (below + 1))
    return _T95[below - 1] + weight * (_T95[below] - _T95[below - 1])


def noise(a: Spread, b: Spread) -> float:
    """How far apart two means must be to be told apart; infinite with a single seed."""
    if a.n < 2 or b.n < 2:
        return math.inf
    va, vb = (a.sd or 0.0) ** 2 / a.n, (b.sd or 0.0) ** 2 / b.n
    seeds = 0.0
    if va + vb > 0:
        freedom = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
        seeds = t95(freedom) * math.sqrt(va + vb)
    return math.hypot(seeds, a.items, b.items)


def clearly_better(a: Spread, b: Spread, higher_is_better: bool) -> bool:
    """Whether a is better than b by more than the noise."""
    gain = a.mean - b.mean if higher_is_better else b.mean - a.mean
    return gain > noise(a, b) and not math.isclose(a.mean, b.mean, rel_tol=1e-12)


def pareto_front(points: Sequence[tuple[float, float]], *, low_x: bool = True, high_y: bool = True) -> list[int]:
    """Indices of the points that no other point dominates, best x first; equal points stay together.

    A point dominates another when it is at least as good in both and better in one.
    """
    oriented = [(x if low_x else -x, -y if high_y else y) for x, y in points]
    front, best, best_x = [], math.inf, math.inf
    for index in sorted(range(len(points)), key=lambda i: (*oriented[i], i)):
        x, y = oriented[index]
        if y < best:
            best, best_x = y, x
            front.append(index)
        elif y == best and x == best_x:
            front.append(index)
    return front


def undominated(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points, lower being better in each coordinate, that no other point equals in all and beats in one."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x <= y for x, y in zip(a, b, strict=True))

    return [i for i, mine in enumerate(points) if not any(beats(other, mine) for other in points)]


@dataclass(frozen=True)
class Standing:
    """Where a method stands against the front: clear, mean, near or beaten, and the method that decides it."""

    kind: str
    by: str = ""


def standings(
    names: Sequence[str], cost: Sequence[float], quality: Sequence[Spread], higher_is_better: bool
) -> list[Standing]:
    """For each method, by mean cost and by quality beyond noise.

    clear    on the front, and clearly better than every method that costs no more
    mean     on the front by its mean, but a method that costs no more is within noise (`by`)
    near     behind the front, but no method that costs no more is clearly better
    beaten   a method that costs no more is clearly better (`by`, the best such)
    """
    front = set(pareto_front([(c, q.mean) for c, q in zip(cost, quality, strict=True)], high_y=higher_is_better))
    sign = 1 if higher_is_better else -1
    found = []
    for i, mine in enumerate(quality):
        rivals = sorted(
            (j for j in range(len(names)) if j != i and cost[j] <= cost[i]), key=lambda j: -sign * quality[j].mean
        )
        winners = [j for j in rivals if clearly_better(quality[j], mine, higher_is_better)]
        level = [j for j in rivals if not clearly_better(mine, quality[j], higher_is_better)]
        if i in front:
            found.append(Standing("mean", names[level[0]]) if level else Standing("clear"))
        elif winners:
            found.append(Standing("beaten", names[winners[0]]))
        else:
            found.append(Standing("near", names[level[0]] if level else ""))
    return found
