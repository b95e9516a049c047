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


def test_gated_encoder_decoder() -> None:
    world = World("t5-gated", "seq2seq_lm", "encoder-decoder")
    for check in ("batch", "padding", "off", "generate", "checkpointing"):
        getattr(battery, f"check_{check}")(PROMPT, world)


def test_encoder_decoder_sees_the_prompt_where_it_should() -> None:
    """Before the first real token in the encoder; in the mask of cross-attention; never in the decoder's own inputs."""
    world = next(w for w in battery.worlds(PROMPT) if w.kind == "encoder-decoder")
    model = battery.moved(PROMPT, world)
    inner, seen = model.get_base_model(), {}

    def note(name):
        return lambda module, args, kwargs: seen.__setitem__(name, kwargs)

    for name in ("encoder", "decoder"):
        getattr(inner, name).base_layer.register_forward_pre_hook(note(name), with_kwargs=True)
    inputs = world.batch(side="left").inputs()
    out = model(**inputs)
    mask, m = inputs["attention_mask"], PROMPT.tokens
    rows = next(p for n, p in model.named_parameters() if p.requires_grad)
    for b, first in enumerate(mask.argmax(1).tolist()):
        assert torch.equal(seen["encoder"]["inputs_embeds"][b, first : first + m], rows)
        wanted = mask[b].tolist()
        wanted[first:first] = [1] * m
        assert seen["encoder"]["attention_mask"][b].tolist() == wanted
        assert seen["decoder"]["encoder_attention_mask"][b].tolist() == wanted
    assert torch.equal(seen["decoder"]["input_ids"], inputs["decoder_input_ids"])
    assert out.logits.shape[:2] == inputs["decoder_input_ids"].shape


def test_encoder_decoder_without_a_mask_and_with_outputs_given() -> None:
    world = next(w for w in battery.worlds(PROMPT) if w.kind == "encoder-decoder")
    model = battery.moved(PROMPT, world)
    inputs = world.batch(world.examples[:1]).inputs()
    wanted = model(**inputs).logits
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    assert torch.allclose(model(**bare).logits, wanted, atol=1e-6)
    given = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert torch.allclose(model(**{**inputs, "input_ids": None}, encoder_outputs=given).logits, wanted, atol=1e-6)
    assert not model.get_model_status().merged_adapters
    assert model.get_nb_trainable_parameters()[0] == PROMPT.parameter_count(world.base())
