"""Intervals and paired tests. Only numpy; everything is seeded; every metric is a function of weighted items.

An *aggregate* takes per-item statistics (name -> (n,)) and weights (R, n), and returns R values of a metric. A
bootstrap resample is a row of counts, leaving an item out is a zero, and swapping base and tuned on an item moves its
weight: so means, F1, perplexity, calibration error and correlations are resampled by the same few lines.

    percentile     [q(a/2), q(1-a/2)] of the resampled metric
    BCa            the same with a bias correction z0 and an acceleration from leaving items out
                   (Efron 1987; DiCiccio and Efron 1996)
    Wilson         (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)                 proportions
    McNemar        2 P(X <= min(b, c)), X ~ Binomial(b + c, 1/2), at most 1                  paired 0/1, exact
    sign flip      share of sign patterns with |mean| at least as large                      paired means
    Wilcoxon       sign flips of the signed ranks of |difference|; zeros are left out, ties share their mean rank
                   effect size: (sum of positive ranks - sum of negative ranks) / sum of all, in [-1, 1]
    swap           the same for any aggregate: base and tuned change places item by item
    Holm           p-values of several questions, step-down

n items, R resamples, G clusters (items of a cluster are drawn, left out and flipped together).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Stats = dict[str, NDArray]
Aggregate = Callable[[Stats, Floats], Floats]

EXACT_BITS = 14
"""Sign patterns are enumerated up to 2**14, drawn above."""
_CELLS = 4_000_000


def _clusters(n: int, clusters: Sequence[object] | None) -> tuple[NDArray, int]:
    """Cluster index (n,) of each item and the number of clusters."""
    if clusters is None:
        return np.arange(n), n
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([names[c] for c in clusters]), len(names)


def counts(n: int, resamples: int, seed: int, clusters: Sequence[object] | None = None) -> Iterator[Floats]:
    """Bootstrap weights in chunks (r, n): how often each item was drawn."""
    rng = np.random.default_rng(seed)
    of_item, G = _clusters(n, clusters)
    chunk = max(1, _CELLS // max(1, n))
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        drawn = rng.integers(0, G, (r, G)) + np.arange(r)[:, None] * G
        yield np.bincount(drawn.ravel(), minlength=r * G).reshape(r, G)[:, of_item].astype(float)


def _left_out(n: int, clusters: Sequence[object] | None, most: int = 500) -> Floats:
    """Jackknife weights (g, n): each cluster left out once, or `most` blocks of them where there are more."""
    of_item, G = _clusters(n, clusters)
    groups = min(G, most)
    block = of_item * groups // G
    return (block[None] != np.arange(groups)[:, None]).astype(float)


def value(aggregate: Aggregate, stats: Stats) -> float:
    """The metric on the items as they are."""
    n = len(next(iter(stats.values())))
    return float(aggregate(stats, np.ones((1, n)))[0])


def _bounds(found: Floats, point: float, jackknife: Floats | None, level: float) -> tuple[float, float]:
    """Percentile bounds, shifted by BCa where a jackknife is given.

    They are widened to hold the value itself, which the resamples of a biased metric (ECE) can all lie above.
    """
    found = found[np.isfinite(found)]
    if not len(found) or not math.isfinite(point):
        return math.nan, math.nan
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None:
        tails = _bca_tails(found, point, jackknife[np.isfinite(jackknife)], tails)
    low, high = np.quantile(found, tails)
    return min(float(low), point), max(float(high), point)


def _bca_tails(found: Floats, point: float, jackknife: Floats, tails: Floats) -> Floats:
    normal = NormalDist()
    below = float(np.mean(found < point) + np.mean(found <= point)) / 2
    spread = jackknife.mean() - jackknife
    scale = (spread**2).sum() ** 1.5
    if scale == 0:
        return tails
    below = min(max(below, 0.5 / len(found)), 1 - 0.5 / len(found))
    z0, acceleration = normal.inv_cdf(below), (spread**3).sum() / (6 * scale)
    z = np.array([normal.inv_cdf(t) for t in tails]) + z0
    return np.array([normal.cdf(z0 + v / (1 - acceleration * v)) for v in z])


def bootstrap(
    aggregate: Aggregate, stats: Stats, *, resamples: int = 2000, level: float = 0.95, method: str = "bca",
    clusters: Sequence[object] | None = None, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Interval of a metric. `method` is "percentile" or "bca"."""
    n = len(next(iter(stats.values())))
    found = np.concatenate([aggregate(stats, w) for w in counts(n, resamples, seed, clusters)])
    jackknife = aggregate(stats, _left_out(n, clusters)) if method == "bca" and n > 1 else None
    return _bounds(found, value(aggregate, stats), jackknife, level)


def bootstrap_difference(
    aggregate: Aggregate, base: Stats, tuned: Stats, *, resamples: int = 2000, level: float = 0.95,
    method: str = "bca", clusters: Sequence[object] | None = None, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """Interval of metric(tuned) - metric(base): both see the same draw of the same items."""
    n = len(next(iter(base.values())))

    def difference(w: Floats) -> Floats:
        return aggregate(tuned, w) - aggregate(base, w)

    found = np.concatenate([difference(w) for w in counts(n, resamples, seed, clusters)])
    jackknife = difference(_left_out(n, clusters)) if method == "bca" and n > 1 else None
    return _bounds(found, float(difference(np.ones((1, n)))[0]), jackknife, level)


def bootstrap_share(
    aggregate: Aggregate, base: Stats, between: Stats, ceiling: Stats, *, resamples: int = 2000, level: float = 0.95,
    clusters: Sequence[object] | None = None, seed: int = 0,
) -> tuple[float, float, float]:  # fmt: skip
    """(between - base) / (ceiling - base) with its percentile interval; draws without a gap are left out."""
    n = len(next(iter(base.values())))

    def share(w: Floats) -> Floats:
        low, middle, top = (aggregate(s, w) for s in (base, between, ceiling))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (middle - low) / (top - low)

    found = np.concatenate([share(w) for w in counts(n, resamples, seed, clusters)])
    point = float(share(np.ones((1, n)))[0])
    return point, *_bounds(found, point, None, level)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion; within [0, 1] and not empty even at 0 or n successes."""
    if n == 0:
        return math.nan, math.nan
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def mcnemar(base: NDArray, tuned: NDArray) -> float:
    """Exact p of paired 0/1 outcomes: only items on which they differ count."""
    gained, lost = int(np.sum(tuned > base)), int(np.sum(tuned < base))
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def _signs(n: int, resamples: int, seed: int) -> tuple[Iterator[NDArray], bool]:
    """Patterns of 0/1 (r, n) in chunks, all 2**n of them if there are few; whether these are all."""
    if n <= EXACT_BITS:
        return iter([(np.arange(2**n)[:, None] >> np.arange(n)) & 1]), True
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // n)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    return (rng.integers(0, 2, (size, n)) for size in sizes), False


def _share(as_far: int, drawn: int, exact: bool) -> float:
    """The observed pattern is among all of them, or is added to those drawn."""
    return as_far / drawn if exact else (as_far + 1) / (drawn + 1)


def sign_flip(
    difference: NDArray, *, resamples: int = 10000, clusters: Sequence[object] | None = None, seed: int = 0
) -> float:
    """Two-sided p that paired differences (n,) are symmetric around 0; exact when few are not 0."""
    of_item, G = _clusters(len(difference), clusters)
    total = np.bincount(of_item, weights=np.asarray(difference, float), minlength=G)
    total = total[total != 0]
    if not len(total):
        return 1.0
    seen = abs(total.sum()) - 1e-9 * np.abs(total).sum()
    patterns, exact = _signs(len(total), resamples, seed)
    as_far = drawn = 0
    for flips in patterns:
        as_far += int(np.sum(np.abs((1 - 2 * flips) @ total) >= seen))
        drawn += len(flips)
    return _share(as_far, drawn, exact)


def signed_ranks(difference: NDArray) -> Floats:
    """Ranks of |difference| with the sign of the difference, (n,); those that are 0 have rank 0 and count for nothing."""
    difference = np.asarray(difference, float)
    size = np.abs(difference[difference != 0])
    rank = np.array([(size < s).sum() + ((size == s).sum() + 1) / 2 for s in size])
    out = np.zeros(len(difference))
    out[difference != 0] = rank
    return out * np.sign(difference)


def wilcoxon(difference: NDArray, seed: int = 0) -> tuple[float, float]:
    """(two-sided p, effect size) of paired differences (n,); exact when few are not 0."""
    ranks = signed_ranks(difference)
    total = np.abs(ranks).sum()
    return sign_flip(ranks, seed=seed), float(ranks.sum() / total) if total else 0.0


def swap_test(
    aggregate: Aggregate, base: Stats, tuned: Stats, *, resamples: int = 2000,
    clusters: Sequence[object] | None = None, seed: int = 0,
) -> float:  # fmt: skip
    """Two-sided p of a difference in any metric, when base and tuned may change places on each item."""
    n = len(next(iter(base.values())))
    both = {k: np.concatenate([base[k], tuned[k]]) for k in base}
    of_item, G = _clusters(n, clusters)

    def difference(flips: NDArray) -> Floats:
        s = flips[:, of_item].astype(float)  # 1: the item changes sides
        return aggregate(both, np.concatenate([s, 1 - s], 1)) - aggregate(both, np.concatenate([1 - s, s], 1))

    seen = abs(float(difference(np.zeros((1, G), dtype=int))[0]))
    if not math.isfinite(seen):
        return math.nan
    patterns, exact = _signs(G, resamples, seed)
    as_far = drawn = 0
    for flips in patterns:
        far = np.abs(difference(flips))
        as_far += int(np.sum(~(far < seen * (1 - 1e-9))))
        drawn += len(flips)
    return _share(as_far, drawn, exact)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        out[i] = largest
    return out


# ------------------------------------------------------------------------------------------------- baselines


def chance(choices: Sequence[int]) -> float:
    """Expected accuracy of guessing uniformly among each item's choices."""
    return float(np.mean([1 / c for c in choices])) if len(choices) else math.nan


def constant_answer(labels: Sequence[object]) -> tuple[object, float]:
    """The answer that is right most often when it is always given, and how often."""
    if not len(labels):
        return None, math.nan
    seen: dict[object, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
    best = max(seen, key=lambda k: seen[k])
    return best, seen[best] / len(labels)
