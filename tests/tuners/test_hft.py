"""Half fine-tuning: the unit tests that its card asks for."""

import random

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, World, model_of
from luthier.core import catalog
from luthier.core.anatomy import anatomy

HFT = catalog.load("tuners", "hft")
LLAMA = WORLDS[0]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("up_proj", "gate_proj", "down_proj")


def moving(model, tuner, seed=0):
    selection = tuner.select(model, random.Random(seed))
    return selection, {n for n in selection.whole if n.endswith("weight")}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("layers", [2, 4, 6])
def test_two_of_four_and_one_and_a_half_a_layer(seed: int, layers: int) -> None:
    model = model_of("llama", num_hidden_layers=layers)
    _, names = moving(model, HFT(), seed)
    for i in range(layers):
        mine = [n for n in names if f"layers.{i}." in n]
        assert sum(f"self_attn.{a}." in n for n in mine for a in ATTENTION) == 2
        assert sum(f"mlp.{f}." in n for n in mine for f in FEED_FORWARD) in (1, 2)
        assert sum("layernorm" in n for n in mine) == 1
    assert sum(f"mlp.{f}." in n for n in names for f in FEED_FORWARD) == 3 * layers // 2
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= names


def test_fused_projections_split_into_blocks() -> None:
    model = model_of("gpt2", n_layer=4)
    selection, _ = moving(model, HFT(), 1)
    for layer in anatomy(model).layers:
        still = 0
        for role in "qkvo":
            matrix = layer.matrix(role)
            full = f"{matrix.module}.weight"
            blocks = matrix.blocks or None
            if full in selection.whole:
                continue
            if blocks is None or not set(blocks) <= set(selection.blocks.get(full, [])):
                still += 1
        assert still == 2


def test_same_seed_same_draw_and_other_seed_other_draw() -> None:
    model = LLAMA.base()
    draws = [frozenset(moving(model, HFT(), s)[0].whole) for s in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "bert", "t5"])
def test_frozen_stays_and_optimiser_forgets(architecture: str) -> None:
    """After a stage with weight decay the still half is where it was, and the optimiser has no state for it."""
    known = {w.architecture: w for w in WORLDS}
    world = known.get(architecture, World(architecture, "causal_lm", "decoder"))
    battery.check_frozen(HFT(), world)


def test_stages_draw_anew_but_never_does_not() -> None:
    def drawn(tuner, stage):
        model = battery.wrapped(tuner, LLAMA)
        run = battery.loop(tuner, LLAMA, model, 1)
        run.stage = stage
        run.fit()
        return frozenset(run.selection.whole)

    assert len({drawn(HFT(), s) for s in range(4)}) > 1
    assert len({drawn(HFT(reselect="never"), s) for s in range(3)}) == 1


def test_a_draw_each_epoch_moves_on_and_keeps_still_what_is_still() -> None:
    tuner = HFT(reselect="epoch")
    model = battery.wrapped(tuner, LLAMA)
    run = battery.loop(tuner, LLAMA, model, 8)  # four epochs of two steps
    seen: list[frozenset[str]] = []
    before: dict[str, torch.Tensor] = {}
    original = run._select

    def select(epoch: int) -> None:
        if seen:
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    assert torch.equal(parameter, before[name]), name
        original(epoch)
        seen.append(frozenset(run.selection.whole))
        before.update({n: p.detach().clone() for n, p in model.named_parameters()})

    run._select = select
    run.fit()
    assert len(seen) == 4
    assert len(set(seen)) > 1


def test_shares_of_body_and_of_all_are_told_apart() -> None:
    """Half is meant of the body: with a large table most of the whole model moves, and both shares are reported."""
    model = model_of("llama", vocab_size=4000)
    note = HFT().select(model, random.Random(0)).note
    assert 0.25 < note["still_share_of_body"] < 0.75
    assert note["still_share_of_all"] < 0.1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_balance_by_parameters_meets_the_share(share: float) -> None:
    model = model_of("llama", num_hidden_layers=4)
    gaps = {
        balance: abs(
            HFT(share=share, balance=balance).select(model, random.Random(0)).note["still_share_of_body"] - share
        )
        for balance in ("count", "params")
    }
    assert gaps["params"] <= gaps["count"] + 1e-9
    assert gaps["params"] < 0.05


def test_extreme_shares() -> None:
    model = LLAMA.base()
    assert HFT(share=0.0).select(model, random.Random(0)).whole == {n for n, _ in model.named_parameters()}
    still = {n for n, _ in model.named_parameters()} - HFT(share=1.0).select(model, random.Random(0)).whole
    assert still == {n for n, _ in model.named_parameters() if ".layers." in n}


def test_reference_is_the_start_of_the_stage() -> None:
    """Log-probabilities of the untuned model do not depend on what was drawn, nor on the wrapping."""
    model = LLAMA.base()
    before = LLAMA.said(model)
    assert torch.equal(LLAMA.said(HFT().wrap(model, "causal_lm")), before)
    assert list(model.state_dict()) == list(LLAMA.base().state_dict())


def test_gradients_exist_for_the_moving_half_only() -> None:
    model = battery.wrapped(HFT(), LLAMA)
    LLAMA.loss(model.train()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
