"""Biases only: which, and what is refused."""

import random

import pytest

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, model_of
from luthier.core import catalog
from luthier.core.method import LuthierError, Refusal

BITFIT = catalog.load("tuners", "bitfit")


@pytest.mark.parametrize("name", ["llama", "t5", "phi3", "llama-classifier"])
def test_models_without_biases_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match=r"bitfit cannot tune this .*: it has no bias vectors"):
        BITFIT().wrap(model_of(name), "causal_lm")


def test_biases_of_some_projections_are_enough() -> None:
    model = BITFIT().wrap(model_of("qwen2"), "causal_lm")
    moving = {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad}
    assert moving == {"q_proj", "k_proj", "v_proj"}


def test_roles_choose_and_fused_biases_move_in_part() -> None:
    """The paper's smaller set, on GPT-2's fused projection, with weight decay: keys and values are where they were."""
    world = next(w for w in WORLDS if w.architecture == "gpt2")
    tuner = BITFIT(roles=("q", "up"))
    D = world.base().config.hidden_size
    selection = tuner.select(world.base(), random.Random(0))
    assert selection.blocks["transformer.h.0.attn.c_attn.bias"] == [(0, 0, D)]
    assert selection.whole == {f"transformer.h.{i}.mlp.c_fc.bias" for i in range(2)}
    assert tuner.parameter_count(world.base()) == 2 * (D + 4 * D)
    battery.check_frozen(tuner, world)


def test_roles_that_have_no_bias() -> None:
    with pytest.raises(Refusal, match="have no biases"):
        BITFIT(roles=("up",)).wrap(model_of("qwen2"), "causal_lm")
    with pytest.raises(LuthierError, match="unknown role"):
        BITFIT(roles=("query",)).wrap(model_of("bert"), "masked_lm")
