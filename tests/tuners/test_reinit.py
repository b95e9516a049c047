"""Re-initialised top layers: exactly those, by the model's own rule."""

import pytest
import torch

from luthier.checks._models import ARCHITECTURES, MORE_ARCHITECTURES, model_of
from luthier.core import catalog
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError

REINIT = catalog.load("tuners", "reinit")


def changed(name: str, tuner) -> set[str]:
    base = model_of(name)
    model = tuner.wrap(model_of(name), "causal_lm", 3)
    return {n for n, p in model.named_parameters() if not torch.equal(p, base.get_parameter(n))}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_exactly_the_top_block_and_the_pooler(name: str) -> None:
    model = model_of(name)
    top = f"{anatomy(model).layers[-1].name}."
    wanted = {n for n, _ in model.named_parameters() if n.startswith(top) or ".pooler." in f".{n}"}
    assert changed(name, REINIT(layers=1)) == wanted
    assert changed(name, REINIT(layers=1, pooler=False)) == {n for n in wanted if ".pooler." not in f".{n}"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_layer_is_the_identity(name: str) -> None:
    assert changed(name, REINIT(layers=0)) == set()


def test_the_stack_of_an_encoder_decoder_is_chosen() -> None:
    assert all(n.startswith("encoder.block.1.") for n in changed("t5", REINIT(stack="encoder")))
    both = changed("t5", REINIT(stack="both"))
    assert {n.split(".block")[0] for n in both} == {"encoder", "decoder"}


def test_by_the_models_own_rule() -> None:
    model = model_of("bert-classifier", hidden_size=128, intermediate_size=512, initializer_range=0.02)
    REINIT(layers=2).wrap(model, "classification", 0)
    blocks = [m for layer in anatomy(model).layers for m in model.get_submodule(layer.name).modules()]
    for module in (*blocks, *model.bert.pooler.modules()):
        if isinstance(module, torch.nn.Linear):
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()
        elif isinstance(module, torch.nn.LayerNorm):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()


def test_what_is_new_has_the_rate_of_the_head() -> None:
    model = model_of("bert-classifier", num_hidden_layers=4)
    groups = REINIT(layers=2, decay=0.5).groups(model)
    assert [g["lr_scale"] for g in groups] == [0.5**5, 0.5**4, 0.5**3, 1.0]
    assert {n.split(".")[3] for n in groups[-1]["params"] if ".layer." in n} == {"2", "3"}
    assert REINIT(layers=2).groups(model) is None


def test_more_layers_than_there_are() -> None:
    with pytest.raises(LuthierError, match="has 2 blocks"):
        REINIT(layers=3).wrap(model_of("llama"), "causal_lm")
