"""The head's fused log-probabilities and gradients are those of the plain way, whatever is frozen, chunked or half."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.logprobs import linear_logp

N, D, V = 23, 6, 41


def _parts(dtype: torch.dtype, bias: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    states = torch.randn(N, D, generator=make, dtype=dtype)
    weight = torch.randn(V, D, generator=make, dtype=dtype)
    b = torch.randn(V, generator=make, dtype=dtype) if bias else None
    target = torch.randint(V, (N,), generator=make)
    return states, weight, b, target, torch.randn(N, generator=make, dtype=dtype)


def _plain(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    z = F.linear(states, weight, bias)
    return torch.log_softmax(z.to(torch.promote_types(z.dtype, torch.float32)), -1).gather(1, target[:, None])[:, 0]


def _gradients(logp: Tensor, g: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((logp * g.to(logp.dtype)).sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, N, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_plain(dtype: torch.dtype, bias: bool, chunk: int, frozen: bool) -> None:
    states, weight, b, target, g = _parts(dtype, bias)
    leaves = [states] if frozen else [t for t in (states, weight, b) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, plain = linear_logp(states, weight, b, target, chunk), _plain(states, weight, b, target)
    assert ours.dtype == plain.dtype
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(_gradients(ours, g, leaves), _gradients(plain, g, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("frozen", [False, True])
def test_derivative_of_the_function(frozen: bool) -> None:
    states, weight, b, target, _ = _parts(torch.float64, True)
    states.requires_grad_()
    if not frozen:
        weight.requires_grad_()
        b.requires_grad_()  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(lambda s, w, c: linear_logp(s, w, c, target, 7), (states, weight, b))


def test_extreme_logits_stay_finite_and_gradients_can_be_asked_twice() -> None:
    states, weight, _, target, g = _parts(torch.float32, False)
    states, weight = (1e3 * states).requires_grad_(), weight.requires_grad_()
    logp = linear_logp(states, weight, None, target)
    assert torch.isfinite(logp).all()
    torch.testing.assert_close(logp, _plain(states, weight, None, target))
    first = torch.autograd.grad((logp * g).sum(), [states, weight], retain_graph=True)
    again = torch.autograd.grad((logp * g).sum(), [states, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_half_precision_rounds_no_worse_than_the_plain_way(frozen: bool) -> None:
    states, weight, _, target, g = _parts(torch.float32, False)
    leaves = [states.requires_grad_()] if frozen else [states.requires_grad_(), weight.requires_grad_()]
    exact = _gradients(_plain(states, weight, None, target), g, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = linear_logp(states, weight, None, target), _plain(states, weight, None, target)
    torch.testing.assert_close(ours, plain)
    mine, theirs = _gradients(ours, g, leaves), _gradients(plain, g, leaves)
    for e, a, b in zip(exact, mine, theirs, strict=True):
        assert (a - e).norm() <= 1.25 * (b - e).norm()


def test_without_gradients_and_without_rows() -> None:
    states, weight, b, target, _ = _parts(torch.float32, True)
    with torch.no_grad():
        torch.testing.assert_close(linear_logp(states, weight, b, target, 4), _plain(states, weight, b, target))
    empty = linear_logp(states[:0].requires_grad_(), weight.requires_grad_(), b, target[:0])
    assert empty.shape == (0,)
    assert torch.autograd.grad(empty.sum(), weight)[0].abs().sum() == 0
