"""Per-token log-probabilities: against torch in float64, in chunks, through every kind of head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from luthier.checks._models import MORE_ARCHITECTURES, PAD, World, model_of, texts
from luthier.core.batch import collate_text
from luthier.core.logprobs import Scorer, gather_logp, linear_logp

torch.set_num_threads(1)


def case(n: int, width: int, vocabulary: int, bias: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_() if bias else None
    return states, weight, b, torch.randint(0, vocabulary, (n,), generator=generator)


def plain(states, weight, bias, target):
    return torch.log_softmax(torch.nn.functional.linear(states, weight, bias), -1).gather(1, target[:, None])[:, 0]


@given(
    n=st.integers(1, 9),
    width=st.integers(1, 6),
    vocabulary=st.integers(2, 12),
    bias=st.booleans(),
    chunk=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_equals_torch(n, width, vocabulary, bias, chunk) -> None:
    states, weight, b, target = case(n, width, vocabulary, bias)
    found, wanted = linear_logp(states, weight, b, target, chunk), plain(states, weight, b, target)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    inputs = [t for t in (states, weight, b) if t is not None]
    grad = torch.linspace(-1, 2, n, dtype=torch.float64)
    for a, w in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad)):
        torch.testing.assert_close(a, w, rtol=1e-10, atol=1e-10)


def test_nothing_scored() -> None:
    """A micro-batch without a scored token: an empty result whose gradient is zero."""
    states, weight, b, target = case(0, 3, 7, True)
    found = linear_logp(states, weight, b, target, 2)
    assert found.shape == (0,)
    found.sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("chunk", [2, 50])
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(chunk: int, bias: bool) -> None:
    states, weight, b, target = case(5, 3, 7, bias)
    inputs = (states, weight, b) if bias else (states, weight)
    assert gradcheck(lambda s, w, b=None: linear_logp(s, w, b, target, chunk), inputs)


def test_frozen_head_gets_no_gradient() -> None:
    states, weight, b, target = case(5, 3, 7, True)
    weight, b = weight.detach(), b.detach()
    linear_logp(states, weight, b, target, 2).sum().backward()
    assert weight.grad is None
    assert b.grad is None
    wanted = torch.autograd.grad(plain(states, weight, b, target).sum(), states)[0]
    torch.testing.assert_close(states.grad, wanted)


def test_frozen_states_under_a_moving_head() -> None:
    states, weight, _, target = case(5, 3, 7, False)
    linear_logp(states.detach(), weight, None, target, 2).sum().backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(plain(states, weight, None, target).sum(), weight)[0])


def test_autocast() -> None:
    states, weight, b, target = (t.detach().float() if t.is_floating_point() else t for t in case(6, 8, 20, True))
    states.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_logp(states, weight, b, target, 4)
        z = torch.nn.functional.linear(states, weight, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gather_logp(z, target), rtol=1e-3, atol=1e-3)
    found.sum().backward()
    assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", *(n for n, a in MORE_ARCHITECTURES.items() if a[1] == "causal_lm")])
def test_scorer_equals_full_logits(name: str) -> None:
    """Models that cap or scale their logits after the head included; gradients too."""
    batch = collate_text(list(texts()), PAD)
    found = []
    for way in ("full", "scorer", "chunks"):
        model = model_of(name)
        if way == "full":
            logits = model(**batch.inputs(), use_cache=False).logits.flatten(0, 1)[batch.source]
            logp = gather_logp(logits, batch.target)
        else:
            logp = Scorer(model, chunk=4 if way == "chunks" else None).token_logp(batch)
        logp.sum().backward()
        found.append((logp.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for logp, gradients in found[1:]:
        torch.testing.assert_close(logp, found[0][0], rtol=2e-5, atol=2e-5)
        assert gradients.keys() == found[0][1].keys()
        for n, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][n], rtol=1e-3, atol=2e-4, msg=lambda m, n=n: f"{n}: {m}")


def test_an_adapted_head_is_used_as_it_is() -> None:
    """LoRA on the head: the head is no plain linear layer any more, and still runs at scored positions only."""
    from peft import LoraConfig, get_peft_model

    batch = collate_text(list(texts()), PAD)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(model_of("llama"), config)
    wanted = gather_logp(model(**batch.inputs()).logits.flatten(0, 1)[batch.source], batch.target)
    for chunk in (None, 3):
        torch.testing.assert_close(Scorer(model, chunk=chunk).token_logp(batch), wanted, rtol=1e-4, atol=1e-5)


def test_head_is_left_as_it_was() -> None:
    world = World("llama", "causal_lm", "decoder")
    model = world.base()
    before = model.lm_head.forward
    Scorer(model).token_logp(world.batch())
    assert "forward" not in model.lm_head.__dict__
    assert model.lm_head.forward == before
