"""Lightweight personalisation: the trainable sets are exact, and the last block needs nothing below it."""

import pytest
import torch

from luthier.checks._models import ARCHITECTURES, model_of
from luthier.core import catalog
from luthier.core.anatomy import anatomy

LIGHT = catalog.load("tuners", "lightweight")


def moving(name: str, tuner) -> set[str]:
    model = tuner.wrap(model_of(name), "causal_lm")
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_embeddings_and_output() -> None:
    assert moving("llama", LIGHT()) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert moving("gpt2", LIGHT()) == {"transformer.wte.weight"}  # tied: one tensor
    assert LIGHT().parameter_count(model_of("gpt2")) == model_of("gpt2").lm_head.weight.numel()


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a[1] != "classification"])
def test_last_block(name: str) -> None:
    block = f"{anatomy(model_of(name)).layers[-1].name}."
    found = moving(name, LIGHT(variant="last_block"))
    assert found == {n for n, _ in model_of(name).named_parameters() if n.startswith(block)}
    more = moving(name, LIGHT(variant="last_block", with_head=True))
    assert more > found


def test_nothing_is_computed_backward_below_the_last_block() -> None:
    model = LIGHT(variant="last_block").wrap(model_of("llama"), "causal_lm").train()
    first, last = (model.get_submodule(layer.name) for layer in anatomy(model).layers)
    seen = []
    for block in (first, last):
        block.register_forward_hook(
            lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).requires_grad)
        )
    model(input_ids=torch.arange(5, 12)[None])
    assert seen == [False, True]
