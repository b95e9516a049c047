"""Prompts around the backbone: positions, lengths and layouts that the common checks do not reach."""

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import World
from luthier.core import catalog

PROMPT = catalog.load("tuners", "prompt_tuning").example()


@pytest.mark.parametrize("architecture", ["opt", "phi3", "gpt_neox", "qwen3", "gemma2", "distilbert", "roberta"])
@pytest.mark.parametrize("check", ["batch", "padding", "off", "checkpointing"])
def test_other_architectures(architecture: str, check: str) -> None:
    encoder = architecture in ("distilbert", "roberta")
    world = World(architecture, "masked_lm" if encoder else "causal_lm", "encoder" if encoder else "decoder")
    getattr(battery, f"check_{check}")(PROMPT, world)


def test_sequence_grows_by_the_prompt_inside_only() -> None:
    world = battery.worlds(PROMPT)[0]
    model = battery.moved(PROMPT, world)
    seen = []
    handle = model.get_base_model().model.layers[0].register_forward_hook(lambda m, a, out: seen.append(out))
    ids = world.batch().ids
    logits = model(input_ids=ids, attention_mask=world.batch().mask.long()).logits
    handle.remove()
    states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert states.shape[1] == ids.shape[1] + PROMPT.tokens
    assert logits.shape[1] == ids.shape[1]


def test_only_the_prompt_has_gradients() -> None:
    world = battery.worlds(PROMPT)[0]
    model = battery.moved(PROMPT, world).train()
    world.loss(model).backward()
    with_gradient = [n for n, p in model.named_parameters() if p.grad is not None]
    assert len(with_gradient) == 1
    assert torch.isfinite(model.get_parameter(with_gradient[0]).grad).all()
