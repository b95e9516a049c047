"""Sampling: the target distribution, its truncations, greedy as its limit, and independent copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import llama, tokenizer
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from luthier.core.method import Limits, LuthierError
from luthier.decoding._family import rows_of
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus, draw, nucleus_probability


def prompts() -> list[list[int]]:
    return [tokenizer()(p)["input_ids"] for p in ("the cat", "in an on abcd er", "x")]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1, 1, 0), (0.7, 0.9, 0), (1.3, 1, 5), (1, 0.6, 7), (2, 0.3, 3)]
)
def test_distribution_is_transformers(temperature: float, top_p: float, top_k: int) -> None:
    scores = torch.randn(16, 50, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(float(temperature))(None, scores) if temperature != 1 else scores
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(float(top_p))(None, expected) if top_p < 1 else expected
    found = nucleus_probability(scores, temperature, top_p, top_k)
    torch.testing.assert_close(found.float(), expected.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 4)])
def test_draws_follow_the_distribution(top_p: float, top_k: int) -> None:
    n = 6000
    scores = torch.linspace(-1.5, 1.0, 8)[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    p = nucleus_probability(scores[None], 1.0, top_p, top_k)[0].numpy()
    drawn = draw(torch.from_numpy(p).expand(n, -1), rows_of([[7]] * n, seed=11)).numpy()
    seen = np.bincount(drawn, minlength=8)
    assert seen[p == 0].sum() == 0
    assert chisquare(seen[p > 0], p[p > 0] * n).pvalue > 0.001


def test_two_steps_are_independent() -> None:
    n, p = 4000, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(4000, -1)
    rows = rows_of([[i] for i in range(n)], seed=0)
    pairs = draw(p, rows).numpy() * 3 + draw(p, rows).numpy()
    expected = np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]).ravel() * n
    assert chisquare(np.bincount(pairs, minlength=9), expected).pvalue > 0.001


def test_temperature_to_zero_is_greedy() -> None:
    model, limits = llama(), Limits(16, (2,), 0)
    greedy = [g.ids for g in Greedy().generate(model, prompts(), limits)]
    for temperature in (0.0, 1e-6):
        assert [g.ids for g in Nucleus(temperature=temperature).generate(model, prompts(), limits)] == greedy
    assert [g.ids for g in Nucleus(top_k=1).generate(model, prompts(), limits)] == greedy


def test_seed_and_copies() -> None:
    model, row = llama(), prompts()[:1]
    four = [g.ids for g in Nucleus().generate(model, row * 4, Limits(12, seed=1))]
    assert len({tuple(g) for g in four}) == 4, "copies of a prompt are different samples"
    assert four == [g.ids for g in Nucleus().generate(model, row * 4, Limits(12, seed=1))]
    assert four[0] == Nucleus().generate(model, row, Limits(12, seed=1))[0].ids
    assert four[0] != Nucleus().generate(model, row, Limits(12, seed=2))[0].ids


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Nucleus().generate(llama(), prompts(), Limits(4))
    assert torch.equal(before, torch.get_rng_state())


def test_senseless_options() -> None:
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}):
        with pytest.raises(LuthierError, match="nucleus needs"):
            Nucleus(**options)
