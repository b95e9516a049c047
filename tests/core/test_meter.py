"""The meter against closed forms: a stack of linear layers, torch's counter, and bytes counted by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core import catalog, meter
from luthier.core.flops import graph_cost
from luthier.core.logprobs import Scorer

N, SIZES = 24, (16, 32, 48, 8)


def stack() -> tuple[nn.Sequential, list[int], torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(SIZES)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    return model, [2 * N * a * b for a, b in pairwise(SIZES)], torch.randn(N, SIZES[0])


@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_linear_stack(lowest: int) -> None:
    """Own gradients of what moves, and pass-through strictly above the lowest of it: nothing below, nothing frozen."""
    model, product, x = stack()
    for i in range(3):
        model[2 * i].requires_grad_(i == lowest)
    cost = meter.step_cost(model, lambda: model(x).square().mean(), N, N)
    assert cost.forward_flops == sum(product)
    assert cost.backward_flops == product[lowest] + sum(product[lowest + 1 :])
    assert cost.flops == cost.forward_flops + cost.backward_flops


def test_every_subset_of_a_linear_stack() -> None:
    model, product, x = stack()
    names = [n for n, _ in model.named_parameters()]
    cost = graph_cost(model, {n: [n] for n in names}, lambda: model(x).square().mean())
    assert cost.forward == sum(product)
    assert cost.full == sum(product) + sum(product[1:])  # the input has no gradient
    for subset in range(1, 1 << len(names)):
        moving = [int(n.split(".")[0]) // 2 for n in cost.names(subset)]
        own = sum(product[int(n.split(".")[0]) // 2] for n in cost.names(subset) if n.endswith("weight"))
        assert cost.backward(subset) == own + sum(product[min(moving) + 1 :])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_saved_bytes_by_hand() -> None:
    """Frozen layers keep nothing but what passing a gradient needs; weights are not counted."""
    model, _, x = stack()
    full = meter.step_cost(model, lambda: model(x).sum(), N, N).saved_tensor_bytes
    assert full == 4 * N * (SIZES[0] + SIZES[1] + SIZES[2])  # inputs of the three layers; a ReLU keeps the next input
    for i in range(2):
        model[2 * i].requires_grad_(False)
    assert meter.step_cost(model, lambda: model(x).sum(), N, N).saved_tensor_bytes == 4 * N * SIZES[2]


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.label)
def test_full_training_is_what_torch_counts(world) -> None:
    model = world.base(attn_implementation="eager").train()
    scorer, batch = Scorer(model), world.batch()

    def loss_of():
        return world.objective.compute(scorer, batch).sum

    loss_of()  # the first use measures whether the logits are the head's own
    cost = meter.step_cost(model, loss_of, batch.tokens, batch.ids.numel())
    with FlopCounterMode(display=False) as forward:
        loss = loss_of()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert (cost.forward_flops, cost.backward_flops) == (forward.get_total_flops(), backward.get_total_flops())


def test_attention_on_a_cpu_is_counted() -> None:
    """Fused attention costs at least what the same products cost apart."""
    world, found = WORLDS[0], {}
    for kind in ("eager", "sdpa"):
        model = world.base(attn_implementation=kind)
        loss_of = lambda m=model: world.loss(m)  # noqa: E731
        loss_of()
        found[kind] = meter.step_cost(model, loss_of, 1, 1)
    assert found["sdpa"].forward_flops == found["eager"].forward_flops
    assert found["sdpa"].backward_flops >= found["eager"].backward_flops


def test_scalars_of_full_adapters_ties_and_heads() -> None:
    gpt2 = WORLDS[1].base()
    told = meter.scalars(gpt2)
    assert told.total == sum(p.numel() for p in gpt2.parameters())  # the tied head is one tensor
    classifier = meter.scalars(WORLDS[3].base())
    assert classifier.head == sum(p.numel() for p in WORLDS[3].base().classifier.parameters())
    base = meter.scalars(WORLDS[0].base()).total
    for name, extra in (("lora", 0), ("bottleneck", None)):
        tuner = catalog.load("tuners", name).example()
        model = battery.wrapped(tuner, WORLDS[0])
        told = meter.scalars(model, tuner)
        assert told.trained == tuner.parameter_count(WORLDS[0].base())
        assert told.total == base + told.trained
        assert told.served == base + (told.trained if extra is None else extra)


@pytest.mark.parametrize("world", [0, 3], ids=["decoder", "classifier"])
def test_shares_are_shares_of_the_base(world: int) -> None:
    """Whatever a tuner adds, with its copies of heads and norms, is not in the denominator."""
    base = sum(p.numel() for p in WORLDS[world].base().parameters())
    looked = 0
    for entry in catalog.entries("tuners"):
        tuner = catalog.load("tuners", entry.name).example()
        if WORLDS[world].kind in tuner.kinds and tuner.artefact == "adapter":
            model = battery.wrapped(tuner, WORLDS[world])
            assert meter.scalars(model, tuner).base == base, entry.name
            looked += 1
    assert looked > 10


def test_a_run_reports_what_it_measured() -> None:
    tuner = catalog.load("tuners", "full")()
    run = battery.loop(tuner, WORLDS[3], battery.wrapped(tuner, WORLDS[3]), 4)
    cost = run.fit().cost
    assert cost["head_parameters"] > 0
    assert cost["trainable_parameters"] == cost["total_parameters"] == cost["served_parameters"]
    per_token = (cost["forward_flops"] + cost["backward_flops"]) / run.cost["padded_tokens"]
    assert cost["train_flops"] == pytest.approx(per_token * run.padded)
    moving = sum(p.numel() for p in run.plain.parameters())
    assert cost["optimizer_bytes"] == pytest.approx(8 * moving, rel=0.05)


def test_step_time_leaves_out_the_warm_up() -> None:
    assert meter.step_seconds([9.0] * 5 + [1.0] * 20) == 1.0
    assert meter.step_seconds([3.0, 1.0, 2.0]) == 2.0
    assert meter.step_seconds([]) == 0.0
