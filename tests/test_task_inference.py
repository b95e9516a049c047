"""The closed-form regression world: limits, identities, long prompts; and the same fit on a model's ambiguous prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.analysis._bayes import Prompts, Regression, inferred_alpha, share
from luthier.analysis.task_inference import TaskInference
from luthier.core.method import LuthierError

RNG = np.random.default_rng


def world(d: int = 3, T: int = 8, seed: int = 0, **options: float) -> Regression:
    return Regression(RNG(seed).standard_normal((T, d)), **options)


def loss(w: Regression, prompts: Prompts, alpha: float, gamma: float = 1.0) -> float:
    return float(np.mean((w.says(prompts, alpha, gamma) - prompts.answer) ** 2))


@pytest.mark.parametrize("seed", range(3))
def test_the_mixture_is_the_best_answer_on_the_mixture(seed: int) -> None:
    w = world(seed=seed)
    prompts = w.draw(3000, 8, 0.5, RNG(seed))
    both, discrete, continuous = (loss(w, prompts, a) for a in (0.5, 1.0, 0.0))
    assert both < min(discrete, continuous)
    assert both <= min(loss(w, prompts, a) for a in (0.1, 0.25, 0.75, 0.9)) * 1.02


def test_ridge_becomes_least_squares_without_noise() -> None:
    w = world(sigma=1e-5)
    prompts = w.draw(20, 6, 0.0, RNG(1))
    wanted = [np.linalg.lstsq(X, y, rcond=None)[0] for X, y in zip(prompts.X, prompts.y, strict=True)]
    assert np.allclose(w.w_continuous(prompts.X, prompts.y), wanted, atol=1e-6)


def test_ridge_with_one_input_by_hand() -> None:
    w = world(d=1, sigma=0.5, tau=2.0)
    X, y = np.array([[[1.0], [2.0]]]), np.array([[1.5, 2.0]])
    assert w.w_continuous(X, y)[0, 0] == pytest.approx((1.5 + 4.0) / (5.0 + 0.0625))


def test_discrete_experts_weigh_by_fit() -> None:
    w = Regression(np.array([[1.0], [3.0]]))
    X, y = np.array([[[1.0]]]), np.array([[2.5]])
    odds = math.exp(-0.5 * (0.5**2 - 1.5**2))
    assert w.w_discrete(X, y)[0, 0] == pytest.approx((1 + 3 * odds) / (1 + odds))


def test_evidence_is_that_of_two_normal_densities() -> None:
    w = Regression(np.array([[1.0], [3.0]]), sigma=0.7, tau=1.3)
    X, y = np.array([[[0.5]]]), np.array([[1.2]])

    def normal(x: float, sd: float) -> float:
        return math.exp(-0.5 * (x / sd) ** 2) / (sd * math.sqrt(2 * math.pi))

    discrete = 0.5 * (normal(1.2 - 0.5, 0.7) + normal(1.2 - 1.5, 0.7))
    continuous = normal(1.2, math.sqrt(1.3**2 * 0.25 + 0.49))
    assert w.evidence(X, y)[0] == pytest.approx(math.log(discrete / continuous))


def test_the_share_goes_to_the_task_that_explains_the_prompt() -> None:
    w = world()
    far = np.full(3, 12.0)
    X = RNG(2).standard_normal((1, 1000, 3))
    assert share(0.5, w.evidence(X, X @ far))[0] < 1e-12
    assert share(0.5, w.evidence(X, X @ w.tasks[3]))[0] > 1 - 1e-3


def test_forty_points_and_far_labels_stay_finite() -> None:
    w = world(d=10, T=64, sigma=0.01)
    prompts = w.draw(50, 40, 0.5, RNG(3)).scaled(1e3)
    with np.errstate(all="raise", under="ignore"):
        for alpha in (0.0, 1e-300, 0.5, 1.0):
            assert np.isfinite(w.says(prompts, alpha)).all()


def test_scale_one_is_the_identity_and_scaling_frees_what_tuning_hid() -> None:
    w = world()
    tuned = 1 / (1 + math.exp(-14))
    continuous, discrete = (w.draw(2000, 8, a, RNG(4)) for a in (0.0, 1.0))
    assert np.array_equal(w.says(continuous, tuned, 1.0), w.says(continuous, tuned))
    plain, scaled = (loss(w, continuous, tuned, g) for g in (1.0, 3.0))
    assert plain > 2 * loss(w, continuous, 0.0)
    assert scaled < 0.6 * plain
    assert loss(w, discrete, tuned, 3.0) > loss(w, discrete, tuned)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.3, 0.5, 0.999, 1.0])
def test_alpha_is_found_again(alpha: float) -> None:
    w = world()
    prompts = w.draw(400, 6, 0.5, RNG(5))
    found = inferred_alpha(w.says(prompts, alpha), *w.experts(prompts))
    assert found == pytest.approx(alpha, rel=1e-3, abs=1e-7)


def test_alpha_of_noisy_predictions_is_near() -> None:
    w = world()
    prompts = w.draw(4000, 6, 0.5, RNG(6))
    said = w.says(prompts, 0.8) + 0.1 * RNG(7).standard_normal(4000)
    assert inferred_alpha(said, *w.experts(prompts)) == pytest.approx(0.8, abs=0.05)


# ------------------------------------------------------------------------------------------------- on a model

ROWS = [{"prompt": f"in {w} out", "answer": f" {w}", "rival": " 7"} for w in ("maple", "river", "stone")]


def test_in_a_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["analysis"] = {
        "name": "task_inference", "rows": ROWS, "every": 4, "transforms": {"leet": "leetspeak", "same": "identity"},
    }  # fmt: skip
    looks = luthier.run(recipe, quiet=True).results["analysis"]
    assert [r["step"] for r in looks] == [0, 4, 8]
    for look in looks:
        found = look["task_inference"]
        assert found["alpha same"] == found["alpha plain"] != found["alpha leet"]
        assert 0 <= found["alpha plain"] <= 1
        assert found["likelihood plain"] < 0


def test_rows_are_asked_for_and_their_columns() -> None:
    with pytest.raises(LuthierError, match="no rows"):
        TaskInference().table(None)  # type: ignore[arg-type]
    with pytest.raises(LuthierError, match="row 0 has no rival"):
        TaskInference(rows=[{"prompt": "a", "answer": "b"}]).for_data(None, lambda source: [])
