"""Linear regression in context, with exact answers: two tasks, their mixture, and what scaling the labels does.

A prompt is k examples (x_i, y_i) and a question x_q; y = w.x + sigma e, x ~ N(0, I_d).

    discrete    w is one of w_1 ... w_T, each as likely                           what tuning shows
    continuous  w ~ N(0, tau^2 I)                                                 what pretraining shows besides
    w_d   = sum_t w_t pi_t,   pi_t ~ exp(-|y - X w_t|^2 / 2 sigma^2)
    w_c   = (X'X + (sigma/tau)^2 I)^-1 X'y                                        ridge regression
    e     = log p(y | discrete) - log p(y | continuous)                           evidence of the prompt
    w_mix = g w_d + (1 - g) w_c,   g = sigmoid(logit alpha + e)                   the best answer where a share alpha is discrete
    w_gamma = w_mix(X, gamma y) / gamma                                           labels scaled, the answer scaled back

X (n, k, d), y (n, k), question (n, d), tasks (T, d): n prompts at once, float64. Sums of exponentials stay in logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prompts:
    """n prompts with the answers that are asked for, free of noise."""

    X: Floats
    y: Floats
    question: Floats
    answer: Floats

    def scaled(self, gamma: float) -> Prompts:
        return Prompts(self.X, gamma * self.y, self.question, gamma * self.answer)


@dataclass(frozen=True)
class Regression:
    """The world: the set of discrete tasks (T, d), noise `sigma`, and the spread `tau` of continuous ones."""

    tasks: Floats
    sigma: float = 1.0
    tau: float = 1.0

    def draw(self, n: int, k: int, alpha: float, rng: np.random.Generator) -> Prompts:
        """Prompts of k examples, each discrete with probability `alpha`."""
        T, d = self.tasks.shape
        discrete = rng.random(n) < alpha
        w = np.where(discrete[:, None], self.tasks[rng.integers(0, T, n)], self.tau * rng.standard_normal((n, d)))
        X, question = rng.standard_normal((n, k, d)), rng.standard_normal((n, d))
        y = np.einsum("nkd,nd->nk", X, w) + self.sigma * rng.standard_normal((n, k))
        return Prompts(X, y, question, np.einsum("nd,nd->n", question, w))

    def fits(self, X: Floats, y: Floats) -> Floats:
        """log N(y; X w_t, sigma^2 I), (n, T)."""
        off = y[:, :, None] - X @ self.tasks.T  # (n, k, T)
        return -(off**2).sum(1) / (2 * self.sigma**2) - y.shape[1] * math.log(self.sigma * math.sqrt(2 * math.pi))

    def w_discrete(self, X: Floats, y: Floats) -> Floats:
        """(n, d)."""
        fits = self.fits(X, y)
        posterior = np.exp(fits - _logsumexp(fits)[:, None])
        return posterior @ self.tasks

    def w_continuous(self, X: Floats, y: Floats) -> Floats:
        """(n, d)."""
        inner = np.einsum("nki,nkj->nij", X, X) + (self.sigma / self.tau) ** 2 * np.eye(X.shape[2])
        return np.linalg.solve(inner, np.einsum("nkd,nk->nd", X, y)[:, :, None])[:, :, 0]

    def evidence(self, X: Floats, y: Floats) -> Floats:
        """e (n,): positive where the examples look like one of the discrete tasks."""
        k = X.shape[1]
        spread = self.tau**2 * np.einsum("nid,njd->nij", X, X) + self.sigma**2 * np.eye(k)
        _, volume = np.linalg.slogdet(spread)
        inside = np.einsum("nk,nk->n", y, np.linalg.solve(spread, y[:, :, None])[:, :, 0])
        continuous = -0.5 * (inside + volume + k * math.log(2 * math.pi))
        return _logsumexp(self.fits(X, y)) - math.log(len(self.tasks)) - continuous

    def w_mixture(self, X: Floats, y: Floats, alpha: float) -> Floats:
        """(n, d)."""
        g = share(alpha, self.evidence(X, y))[:, None]
        return g * self.w_discrete(X, y) + (1 - g) * self.w_continuous(X, y)

    def says(self, prompts: Prompts, alpha: float, gamma: float = 1.0) -> Floats:
        """Answers (n,) of the mixture, with labels scaled by `gamma` and the answer scaled back."""
        w = self.w_mixture(prompts.X, gamma * prompts.y, alpha)
        return np.einsum("nd,nd->n", prompts.question, w) / gamma

    def experts(self, prompts: Prompts) -> tuple[Floats, Floats, Floats]:
        """What each task would answer (n,), discrete first, and the evidence (n,)."""
        X, y, q = prompts.X, prompts.y, prompts.question
        discrete, continuous = (np.einsum("nd,nd->n", q, w(X, y)) for w in (self.w_discrete, self.w_continuous))
        return discrete, continuous, self.evidence(X, y)


def share(alpha: float, evidence: Floats) -> Floats:
    """g = sigmoid(logit alpha + e), (n,)."""
    if alpha in (0.0, 1.0):
        return np.full_like(evidence, alpha)
    z = math.log(alpha) - math.log1p(-alpha) + evidence
    return np.exp(-np.logaddexp(0.0, -z))


def inferred_alpha(said: Floats, discrete: Floats, continuous: Floats, evidence: Floats) -> float:
    """The share alpha that a model acts by: least squares of what it said (n,) against g w_d + (1 - g) w_c, in one scalar.

    A grid in logit alpha, made finer around its best point; 0 and 1 are tried as well.
    """
    low, high = -40.0, 40.0
    best = 0.0
    for _ in range(6):
        grid = np.linspace(low, high, 81)
        best = float(min(grid, key=lambda z: _off(1 / (1 + math.exp(-z)), said, discrete, continuous, evidence)))
        low, high = best - (grid[1] - grid[0]), best + (grid[1] - grid[0])
    tried = (0.0, 1.0, 1 / (1 + math.exp(-best)))
    return min(tried, key=lambda a: _off(a, said, discrete, continuous, evidence))


def _off(alpha: float, said: Floats, discrete: Floats, continuous: Floats, evidence: Floats) -> float:
    g = share(alpha, evidence)
    return float(np.mean((said - g * discrete - (1 - g) * continuous) ** 2))


def _logsumexp(x: Floats) -> Floats:
    """(n, T) to (n,)."""
    top = x.max(1)
    return top + np.log(np.exp(x - top[:, None]).sum(1))  # type: ignore[no-any-return]
