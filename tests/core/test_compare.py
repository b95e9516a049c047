"""Two models at the scored positions: chunks, heads that something follows, adapters that are switched off and on."""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.checks._models import PAD, groups, model_of, texts
from luthier.core import catalog
from luthier.core.batch import collate_groups, collate_text
from luthier.core.logprobs import Scorer, forward_kl
from luthier.core.method import LuthierError
from luthier.core.references import untuned_copy

torch.set_num_threads(1)


def moved(model, scale: float = 0.05, seed: int = 7):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return other


def plainly(model, other, batch):
    """From full logits."""
    logits, theirs = (
        m(**batch.inputs(next(m.parameters()).dtype)).logits.flatten(0, 1)[batch.source] for m in (model, other)
    )
    return forward_kl(logits, theirs.detach(), batch.target)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "gemma2"])
def test_equals_full_logits(name: str, chunk: int) -> None:
    model, batch = model_of(name).double(), collate_text(list(texts()), PAD)
    other = moved(model)
    wanted, found = plainly(model, other, batch), Scorer(model, chunk=chunk, beside=other).compare(batch, forward_kl)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = torch.linspace(-1, 2, len(found[0]), dtype=torch.float64)
    grads = [
        torch.autograd.grad((weights * (kl - 0.5 * logp)).sum(), list(model.parameters()), allow_unused=True)
        for logp, _, kl in (found, wanted)
    ]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert all(p.grad is None for p in other.parameters())


def test_read_is_token_logp() -> None:
    model, batch = model_of("llama"), collate_groups(list(groups()), PAD)
    logp, best = Scorer(model, chunk=4).read(
        batch, lambda z, t: (z.log_softmax(-1).gather(1, t[:, None])[:, 0], z.argmax(-1).to(z))
    )
    torch.testing.assert_close(logp, Scorer(model).token_logp(batch))
    logits = model(**batch.inputs()).logits.flatten(0, 1)[batch.source]
    assert best.long().tolist() == logits.argmax(-1).tolist()


TUNERS = {
    "lora": {"r": 2},
    "lora_head": {"r": 2, "targets": ["lm_head", "q"]},
    "prompt_tuning": {},
    "bottleneck": {},
}


@pytest.mark.parametrize("which", TUNERS)
def test_adapter_off_is_the_copy(which: str) -> None:
    """With the adapter moved, the model beside is the base all the same, and switching leaves no trace."""
    tuner_class = catalog.load("tuners", which.removesuffix("_head"))
    options = TUNERS[which]
    if which == "lora_head":
        from peft import LoraConfig, get_peft_model

        base = model_of("llama")
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    else:
        tuner, base = tuner_class(**options), model_of("llama")
        assert untuned_copy(base, tuner) is None
        model = tuner.wrap(copy.deepcopy(base), "causal_lm", 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    moving = [p for p in model.parameters() if p.requires_grad]
    if len(moving) > 1:
        moving[0].requires_grad_(False)  # a choice that must survive
    flags = [p.requires_grad for p in model.parameters()]
    batch = collate_text(list(texts()), PAD)
    model.train()
    found = Scorer(model, chunk=4).compare(batch, forward_kl)
    wanted = Scorer(model, beside=base).compare(batch, forward_kl)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert float(found[2].sum()) > 1e-3, "the adapter moves the model"
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.training
    moving = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(found[2].sum(), moving), torch.autograd.grad(wanted[2].sum(), moving), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_copy_no_adapter() -> None:
    with pytest.raises(LuthierError, match="no copy of it was kept"):
        Scorer(model_of("llama")).compare(collate_text(list(texts()), PAD), forward_kl)


def test_a_copy_where_the_model_itself_moves() -> None:
    for name in ("full", "bitfit", "hft"):
        model = model_of("llama")
        kept = untuned_copy(model, catalog.load("tuners", name)())
        assert kept is not None
        assert not any(p.requires_grad for p in kept.parameters())


def test_forward_kl() -> None:
    """Zero with itself, never negative, the same when all logits rise, finite where a probability vanishes."""
    g = torch.Generator().manual_seed(0)
    z, r = (20 * torch.randn(40, 11, generator=g) for _ in range(2))
    target = torch.randint(0, 11, (40,), generator=g)
    assert (forward_kl(z, r, target)[2] >= 0).all()
    torch.testing.assert_close(forward_kl(r, r, target)[2], torch.zeros(40))
    for a, b in zip(forward_kl(z + 3, r - 5, target), forward_kl(z, r, target), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(torch.stack(forward_kl(400 * z, 400 * r, target))).all()


def test_vocabularies_of_different_size_are_cut_to_the_smaller() -> None:
    model, batch = model_of("llama"), collate_text(list(texts()), PAD)
    wide = model_of("llama", vocab_size=104)
    with torch.no_grad():
        for (name, a), b in zip(wide.named_parameters(), model.parameters(), strict=True):
            a.copy_(b if a.shape == b.shape else torch.cat([b, torch.randn(8, b.shape[1])]))
            assert name
    logp, ref, kl = Scorer(model, beside=wide).compare(batch, forward_kl)
    torch.testing.assert_close(logp, ref)
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-5, rtol=0)
