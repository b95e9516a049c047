"""TDPO: what it becomes at its limits, its gradient written out, and where its reference comes from."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.checks._models import PAD, groups, model_of
from luthier.checks.objectives import World, gradients
from luthier.core import catalog
from luthier.core.batch import Batch, collate_groups
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer, forward_kl
from luthier.core.loop import Loop
from luthier.core.method import Loss
from luthier.core.references import References, untuned_copy
from luthier.objectives._family import PairLogp

torch.set_num_threads(1)
WORLD = World("pairs", "gpt2", groups(4))


def objective(name: str = "tdpo", **options: Any) -> Any:
    return replace(catalog.load("objectives", name).example(), **options)


def setting(own: bool = False) -> tuple[Any, Any, Batch]:
    """Policy, reference (the policy itself where `own`) and a batch that has the reference's stored numbers too."""
    model, other = WORLD.model().double(), WORLD.model(reference=not own).double()
    batch = collate_groups(list(WORLD.examples), PAD)
    with torch.no_grad():
        batch.reference = Scorer(other).answer_logp(batch)
    return model, other, batch


def asked(method: Any, model: Any, other: Any, batch: Batch) -> tuple[Loss, dict[str, Tensor]]:
    loss = method.compute(Scorer(model, beside=other), batch)
    return loss, gradients(loss.sum, model)


def same(a: tuple[Loss, dict[str, Tensor]], b: tuple[Loss, dict[str, Tensor]], gradient: bool = True) -> None:
    torch.testing.assert_close(a[0].sum, b[0].sum, rtol=1e-10, atol=1e-10)
    for name in a[1] if gradient else ():
        torch.testing.assert_close(a[1][name], b[1][name], rtol=1e-9, atol=1e-9)


def test_alpha_zero_is_dpo() -> None:
    """In loss and gradient, although DPO's reference was stored and this one's is asked."""
    told = setting()
    same(asked(objective(alpha=0.0), *told), asked(objective("dpo"), *told))


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_at_the_reference_it_is_dpo(variant: str) -> None:
    """There the KL is zero and at its minimum."""
    told = setting(own=True)
    found = asked(objective(variant=variant), *told)
    same(found, asked(objective("dpo"), *told))
    assert float(found[0].sum.detach() / found[0].weight) == pytest.approx(0.6931471805599453)
    assert float(found[0].figures["kl/chosen"][0]) == pytest.approx(0, abs=1e-9)


def test_variants_differ_by_the_gradient_of_the_chosen_kl_alone() -> None:
    model, other, batch = setting()
    one, two = (asked(objective(variant=v, alpha=1.0), model, other, batch) for v in ("tdpo1", "tdpo2"))
    same(one, two, gradient=False)
    logp, ref, kl = Scorer(model, beside=other).compare(batch, forward_kl)
    sums = [torch.zeros(batch.answers, dtype=x.dtype).index_add(0, batch.owner, x) for x in (logp, ref, kl)]
    gain, D = sums[0] - sums[1], sums[2]
    margin = (gain[0::2] - gain[1::2]) - (D[1::2] - D[0::2])
    beta = objective().beta
    push = (beta * torch.sigmoid(-beta * margin)).detach()
    missing = gradients((-push * D[0::2]).sum(), model)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient - two[1][name], missing[name], rtol=1e-8, atol=1e-10)
    assert max(float(g.abs().max()) for g in missing.values()) > 1e-4


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_gradient_on_the_logits(variant: str) -> None:
    """Rejected positions: c (e_y - pi) + c alpha (pi - rho); chosen: - c (e_y - pi), and in tdpo1 - c (pi - rho)."""
    g = torch.Generator().manual_seed(0)
    V, n = 9, 6  # three positions of the chosen answer, three of the rejected
    z = torch.randn(n, V, generator=g, dtype=torch.float64, requires_grad=True)
    r, y = torch.randn(n, V, generator=g, dtype=torch.float64), torch.randint(0, V, (n,), generator=g)
    method = objective(variant=variant, beta=0.3, alpha=1.0 if variant == "tdpo1" else 0.4)
    halves = [(c[:3].sum()[None], c[3:].sum()[None]) for c in forward_kl(z, r, y)]
    three = torch.full((1,), 3.0)
    loss = method.loss(PairLogp(*halves[0], *halves[1], three, three, *halves[2]))
    found = torch.autograd.grad(loss.sum(), z)[0]
    (won, lost), (ref_won, ref_lost), (D_w, D_l) = ([float(h.detach()) for h in pair] for pair in halves)
    margin = (won - ref_won) - (lost - ref_lost) - method.alpha * (D_l - D_w)
    c = method.beta / (1 + torch.exp(torch.tensor(method.beta * margin, dtype=torch.float64)))
    pi, rho = z.detach().softmax(-1), r.softmax(-1)
    toward = torch.nn.functional.one_hot(y, V).double() - pi
    chosen = -c * toward - (c * (pi - rho) if variant == "tdpo1" else 0)
    rejected = c * toward + c * method.alpha * (pi - rho)
    torch.testing.assert_close(found, torch.cat([chosen[:3], rejected[3:]]), rtol=1e-6, atol=1e-9)


def test_loop_asks_the_adapter_switched_off_or_a_copy() -> None:
    """Three steps with LoRA: the same losses with a copy of the base beside it; where all moves, the copy is needed."""
    tuner = catalog.load("tuners", "lora")(r=2)
    settings = TrainSettings(max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, logging_steps=1)
    losses = []
    for beside in (None, model_of("llama")):
        model = tuner.wrap(model_of("llama"), "causal_lm", 0)
        loop = Loop(model, tuner, objective(), list(groups(4)), settings, PAD, references=References(model=beside))
        losses.append([row["loss"] for row in loop.fit().log if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0] == pytest.approx(0.693147, rel=1e-4)
    full = catalog.load("tuners", "full")()
    base = model_of("llama")
    kept = untuned_copy(base, full)
    before = copy.deepcopy(kept.state_dict())
    Loop(
        full.wrap(base, "causal_lm", 0),
        full,
        objective(),
        list(groups(4)),
        settings,
        PAD,
        references=References(model=kept),
    ).fit()
    assert all(torch.equal(before[k], v) for k, v in kept.state_dict().items())
    assert not torch.equal(base.state_dict()["lm_head.weight"], before["lm_head.weight"])
