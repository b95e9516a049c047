"""Intervals and tests against scipy, enumeration, and simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from luthier.evaluation import _statistics as st


def mean(stats: dict[str, np.ndarray], w: np.ndarray) -> np.ndarray:
    return w @ stats["x"] / w.sum(1)


def ratio(stats: dict[str, np.ndarray], w: np.ndarray) -> np.ndarray:
    return np.exp((w @ stats["x"]) / (w @ stats["y"]))


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("p", [0.5, 0.85])
def test_bootstrap_covers_a_bernoulli_truth(method: str, p: float) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = st.bootstrap(
            mean, {"x": (rng.random(120) < p).astype(float)}, resamples=400, method=method, seed=trial
        )
        hits += low <= p <= high
    assert 0.91 <= hits / 300 <= 0.985


def test_wilson_covers_and_matches_scipy() -> None:
    for k, n in [(0, 10), (3, 10), (10, 10), (50, 120), (119, 120)]:
        expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        assert st.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    rng = np.random.default_rng(1)
    inside = [low <= 0.9 <= high for low, high in (st.wilson(k, 40) for k in rng.binomial(40, 0.9, 2000))]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_intervals_match_scipy() -> None:
    rng = np.random.default_rng(2)
    x = rng.gamma(1.0, size=60)
    for method in ("percentile", "BCa"):
        found = st.bootstrap(mean, {"x": x}, resamples=20000, method=method.lower())
        expected = scipy_stats.bootstrap(
            (x,), np.mean, n_resamples=20000, method=method, rng=np.random.default_rng(0)
        ).confidence_interval
        assert found == pytest.approx((expected.low, expected.high), abs=0.015)


def test_clusters_are_drawn_whole() -> None:
    rng = np.random.default_rng(3)
    facts = np.repeat(rng.random(30), 8)  # eight probes of a fact agree
    narrow = st.bootstrap(mean, {"x": facts})
    wide = st.bootstrap(mean, {"x": facts}, clusters=np.repeat(np.arange(30), 8).tolist())
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    expected = st.bootstrap(mean, {"x": facts[::8]})
    assert wide == pytest.approx(expected, abs=0.02)


def test_seeded_and_chunk_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": np.random.default_rng(0).random(50)}
    first = st.bootstrap(mean, data, seed=5)
    assert first == st.bootstrap(mean, data, seed=5)
    assert first != st.bootstrap(mean, data, seed=6)
    monkeypatch.setattr(st, "_CELLS", 3000)
    assert first == pytest.approx(st.bootstrap(mean, data, seed=5), abs=1e-12)


def test_difference_is_of_the_same_items() -> None:
    rng = np.random.default_rng(4)
    easy = rng.normal(size=200) * 5  # items differ a lot, the change is small and the same on all
    base, tuned = {"x": easy}, {"x": easy + 0.5 + rng.normal(size=200) * 0.1}
    low, high = st.bootstrap_difference(mean, base, tuned)
    assert 0.48 < low < 0.5 + 0.02 < high + 0.02 < 0.56


def test_mcnemar_is_the_binomial_test() -> None:
    rng = np.random.default_rng(5)
    for n in (0, 1, 5, 40, 900):
        a, b = (rng.random(n) < 0.4).astype(float), (rng.random(n) < 0.5).astype(float)
        gained, lost = int((b > a).sum()), int((b < a).sum())
        expected = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert st.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_sign_flip_is_exact_when_small() -> None:
    d = np.array([0.3, -0.1, 0.8, 0.25, 0.0, 0.4, -0.2])
    signs = np.array(list(itertools.product([1, -1], repeat=7)))
    expected = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
    assert st.sign_flip(d) == pytest.approx(expected)
    assert st.sign_flip(np.zeros(9)) == 1.0


def test_sign_flip_matches_scipy_when_large() -> None:
    d = np.random.default_rng(6).normal(0.12, 1, 150)
    expected = scipy_stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    ).pvalue
    assert st.sign_flip(d) == pytest.approx(expected, abs=0.02)
    assert st.sign_flip(d) == st.sign_flip(d)


def test_swap_is_sign_flip_for_means_and_enumeration_for_ratios() -> None:
    rng = np.random.default_rng(7)
    a, b = ({"x": rng.normal(m, 1, 9), "y": rng.integers(1, 6, 9).astype(float)} for m in (0, 0.8))
    assert st.swap_test(mean, a, b) == pytest.approx(st.sign_flip(b["x"] - a["x"]))
    found = []
    for swap in itertools.product([False, True], repeat=9):
        left, right = ({k: np.where(swap, two[k], one[k]) for k in one} for one, two in ((a, b), (b, a)))
        every = np.ones((1, 9))
        found.append(abs(float((ratio(right, every) - ratio(left, every))[0])))
    assert st.swap_test(ratio, a, b) == pytest.approx(np.mean(np.array(found) >= found[0] - 1e-12))


def test_tests_hold_their_level() -> None:
    """No difference: p < 0.05 in about one of twenty."""
    rng = np.random.default_rng(8)
    p = [st.sign_flip(rng.normal(size=40), resamples=500, seed=i) for i in range(300)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_holm() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([]) == []
    assert st.holm([0.7, 0.9]) == pytest.approx([1.0, 1.0])


def test_floors() -> None:
    assert st.chance([2, 4]) == pytest.approx(0.375)
    assert st.constant_answer(["yes", "no", "yes"]) == ("yes", 2 / 3)
    assert math.isnan(st.constant_answer([])[1])


def test_constant_data_has_no_width() -> None:
    assert st.bootstrap(mean, {"x": np.ones(10)}) == (1.0, 1.0)
    assert all(math.isnan(v) for v in st.wilson(0, 0))
