"""Losses of pairs: where their minima are, what they do not depend on, and where one becomes another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core import catalog
from luthier.objectives._family import PairLogp


def objective(name: str, **options: Any) -> Any:
    return replace(catalog.load("objectives", name).example(), **options)


def pair(seed: int = 0, P: int = 5) -> PairLogp:
    g = torch.Generator().manual_seed(seed)
    logp = [-12 * torch.rand(P, generator=g, dtype=torch.float64) - 1 for _ in range(4)]
    lengths = [torch.randint(2, 9, (P,), generator=g).double() for _ in range(2)]
    return PairLogp(*logp, *lengths)


def slope(name: str, margin: float, **options: Any) -> float:
    """d loss / d logp of the chosen answer, at a margin over the reference; answers of one token."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    chosen = torch.tensor([margin - 1], dtype=torch.float64, requires_grad=True)
    loss = objective(name, **options).loss(PairLogp(chosen, -one, -one, -one, one, one))
    assert zero.shape == loss.shape
    return float(torch.autograd.grad(loss.sum(), chosen)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ipo_stops_at_its_margin_and_dpo_nowhere(reduction: str) -> None:
    tau = 0.25
    assert slope("ipo", 2.0, beta=tau, reduction=reduction) == pytest.approx(0)
    assert slope("ipo", 1.9, beta=tau, reduction=reduction) < 0 < slope("ipo", 2.1, beta=tau, reduction=reduction)
    assert all(slope("dpo", margin) < 0 for margin in (-20.0, 0.0, 2.0, 100.0))


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_a_constant_of_the_prompt_in_both_models_changes_nothing(name: str) -> None:
    told = pair()
    shift = torch.linspace(-3, 3, 5, dtype=torch.float64)
    moved = replace(
        told, chosen=told.chosen + shift, ref_chosen=told.ref_chosen + shift,
        rejected=told.rejected + shift, ref_rejected=told.ref_rejected + shift,
    )  # fmt: skip
    torch.testing.assert_close(objective(name).loss(moved), objective(name).loss(told))


def test_cpo_without_imitation_is_dpo_where_the_reference_does_not_prefer() -> None:
    told = pair()
    even = replace(told, ref_rejected=told.ref_chosen)
    torch.testing.assert_close(objective("cpo", alpha=0.0).loss(told), objective("dpo").loss(even))
    assert not torch.allclose(objective("cpo", alpha=0.0).loss(told), objective("dpo").loss(told))


def test_simpo_on_equal_lengths_is_cpo_with_a_margin() -> None:
    told = replace(pair(), chosen_tokens=torch.full((5,), 4.0), rejected_tokens=torch.full((5,), 4.0))
    found = objective("simpo", beta=2.0, gamma=0.0).loss(told)
    torch.testing.assert_close(found, objective("cpo", beta=0.5, alpha=0.0).loss(told))
    assert (objective("simpo", beta=2.0, gamma=1.0).loss(told) > found).all()


def divergence(**options: Any) -> Tensor:
    return objective("dpo", beta=0.3, **options).loss(pair())


def test_divergences_at_their_limits() -> None:
    reverse, forward = divergence(), divergence(divergence="forward_kl")
    near = divergence(divergence="alpha_divergence", alpha=1 - 1e-7)
    torch.testing.assert_close(divergence(divergence="alpha_divergence", alpha=1.0), reverse)
    torch.testing.assert_close(near, reverse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(divergence(divergence="alpha_divergence", alpha=0.0), forward)
    assert not torch.allclose(reverse, forward)
    small = replace(pair(), **{f"ref_{k}": getattr(pair(), k) + 1e-4 * i for i, k in enumerate(("chosen", "rejected"))})
    slopes = {}
    for d in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"):
        slopes[d] = objective("dpo", divergence=d).slope(small.gains[1])
    # near ratio one every f' is f''(1) log r: 1 for all but Jensen-Shannon's 1/2
    torch.testing.assert_close(slopes["forward_kl"], slopes["reverse_kl"], rtol=1e-3, atol=0)
    torch.testing.assert_close(slopes["alpha_divergence"], slopes["reverse_kl"], rtol=1e-3, atol=0)
    torch.testing.assert_close(2 * slopes["js_divergence"], slopes["reverse_kl"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("d", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_divergences_stay_finite(d: str, sign: int) -> None:
    chosen = torch.tensor([-5000.0 if sign < 0 else -1.0], requires_grad=True)
    reference = torch.tensor([-1.0 if sign < 0 else -5000.0])
    n = torch.ones(1)
    loss = objective("dpo", divergence=d).loss(PairLogp(chosen, chosen.detach() - 3000, reference, reference, n, n))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad).all()


def test_smoothing_half_says_nothing_about_which_is_better() -> None:
    told = pair()
    turned = PairLogp(told.rejected, told.chosen, told.ref_rejected, told.ref_chosen, *(told.chosen_tokens,) * 2)
    even = objective("dpo", label_smoothing=0.5)
    torch.testing.assert_close(even.loss(told), even.loss(turned))
    torch.testing.assert_close(objective("dpo", label_smoothing=1.0).loss(told), objective("dpo").loss(turned))


def test_slic_is_silent_once_the_margin_is_kept() -> None:
    assert slope("slic", 5.0, alpha=0.0, delta=4.0) == 0
    assert slope("slic", 3.0, alpha=0.0, delta=4.0) == -1
    assert slope("slic", 5.0, alpha=0.5, delta=4.0) == pytest.approx(-0.5)


def test_orpo_of_certain_answers_is_finite() -> None:
    sure = torch.zeros(2, requires_grad=True)
    loss = objective("orpo").loss(
        PairLogp(sure, torch.tensor([-9000.0, 0.0]), *(torch.zeros(2),) * 2, *(torch.ones(2),) * 2)
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(sure.grad).all()
