"""Roles on every layout: what `anatomy` says is where it says, and nothing of a layer is left over."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.checks._models import ARCHITECTURES, LAYERS, MORE_ARCHITECTURES, model_of
from luthier.core.anatomy import LAYOUTS, Layout, anatomy, kind_of, register_layout
from luthier.core.method import LuthierError

ALL = ARCHITECTURES | MORE_ARCHITECTURES
NAMES = sorted(ALL)


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_of_a_layer_has_a_role(name: str) -> None:
    model = model_of(name)
    body = anatomy(model)
    told = {m.module for layer in body.layers for m in layer.matrices}
    real = {
        n for n, m in model.named_modules()
        if isinstance(m, nn.Linear | Conv1D) and any(n.startswith(layer.name + ".") for layer in body.layers)
    }  # fmt: skip
    assert told == real
    assert len(body.layers) == LAYERS * (2 if body.kind == "encoder-decoder" else 1)
    assert body.kind == kind_of(model) == ALL[name][2]


@pytest.mark.parametrize("name", NAMES)
def test_every_norm_of_a_layer_is_told(name: str) -> None:
    model = model_of(name)
    body = anatomy(model)
    told = {n for layer in body.layers for n in layer.norms}
    real = {
        n for n, m in model.named_modules()
        if "norm" in type(m).__name__.lower() and any(n.startswith(layer.name + ".") for layer in body.layers)
    }  # fmt: skip
    inside_attention = {n for n in real if n.endswith(("q_norm", "k_norm"))}  # of heads, not of the block
    assert told == real - inside_attention
    rest = {n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()} - real
    assert set(body.final_norms) <= rest


@pytest.mark.parametrize("name", NAMES)
def test_blocks_partition_fused_tensors(name: str) -> None:
    model = model_of(name)
    for layer in anatomy(model).layers:
        fused: dict[str, torch.Tensor] = {}
        for matrix in layer.matrices:
            if matrix.blocks:
                weight = model.get_submodule(matrix.module).weight
                seen = fused.setdefault(matrix.module, torch.zeros_like(weight))
                for dim, start, stop in matrix.blocks:
                    seen.narrow(dim, start, stop - start).add_(1)
        assert all(bool((seen == 1).all()) for seen in fused.values())


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gpt_neox"])
def test_fused_roles_are_what_they_say(name: str) -> None:
    """Zeroing the rows of v in every layer silences attention; zeroing those of q makes it flat: no later change of k shows."""

    def zero(model, role):
        with torch.no_grad():
            for layer in anatomy(model).layers:
                matrix = layer.matrix(role)
                module = model.get_submodule(matrix.module)
                for dim, start, stop in matrix.blocks:
                    module.weight.narrow(dim, start, stop - start).zero_()
                    if getattr(module, "bias", None) is not None:
                        module.bias.narrow(0, start, stop - start).zero_()

    ids = torch.arange(5, 13)[None]
    silent = model_of(name)
    zero(silent, "v")
    other = ids.clone()
    other[0, 0] = 40
    with torch.no_grad():
        a, b = silent(input_ids=ids).logits, silent(input_ids=other).logits
        torch.testing.assert_close(a[:, 1:], b[:, 1:])  # without values no token hears another
        flat = model_of(name)
        zero(flat, "q")
        before = flat(input_ids=ids).logits
        zero(flat, "k")
        torch.testing.assert_close(flat(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_head_and_blocks_exist(name: str) -> None:
    model = model_of(name)
    body = anatomy(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    assert modules[body.embedding] is model.get_input_embeddings()
    if body.head is not None and model.get_output_embeddings() is not None:
        assert modules[body.head] is model.get_output_embeddings()
    for layer in body.layers:
        assert layer.attention in modules
        assert layer.feed_forward in modules
    assert model.config.hidden_size == body.width


def test_roles_resolve_in_layer_order_without_repeats() -> None:
    body = anatomy(model_of("gpt2"))
    names = body.modules(("q", "k", "v"))
    assert names == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    with pytest.raises(LuthierError, match="did you mean 'gate'"):
        body.modules(("gat",))


def test_unknown_architecture_is_named() -> None:
    model = model_of("llama")
    model.config.model_type = "lama"
    with pytest.raises(LuthierError, match=r"'lama'.*nearest: 'llama'"):
        anatomy(model)


def test_registering(monkeypatch) -> None:
    monkeypatch.setattr("luthier.core.anatomy.LAYOUTS", dict(LAYOUTS))
    layout = Layout({"decoder": "layers"}, "a", "f", {}, ())
    register_layout("made_up", layout)
    with pytest.raises(LuthierError, match="already registered"):
        register_layout("made_up", layout)
