"""Partial fine-tuning by name: nothing is computed backward below the lowest layer that moves."""

import pytest
import torch

from luthier.checks._models import ARCHITECTURES, MORE_ARCHITECTURES, model_of
from luthier.core import catalog
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError

FREEZE = catalog.load("tuners", "freeze")
NAMES = [n for n, a in (ARCHITECTURES | MORE_ARCHITECTURES).items() if a[2] != "encoder-decoder"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_computed_backward_below(name: str) -> None:
    """Position tables and embedding norms stay still as well: one of them alone would bring the whole cost back."""
    model = FREEZE(lowest=1).wrap(model_of(name), "causal_lm").train()
    first, second = (model.get_submodule(layer.name) for layer in anatomy(model).layers)
    seen: dict[str, bool] = {}

    def note(what: str):
        def hook(module, args, out):
            seen[what] = (out[0] if isinstance(out, tuple) else out).requires_grad

        return hook

    first.register_forward_hook(note("first"))
    second.register_forward_hook(note("second"))
    model(input_ids=torch.arange(5, 12)[None])
    assert seen == {"first": False, "second": True}


def test_patterns() -> None:
    model = model_of("llama")
    FREEZE(train=("self_attn",), freeze=("k_proj",)).wrap(model, "causal_lm")
    moving = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moving == {n for n, _ in model.named_parameters() if "self_attn" in n and "k_proj" not in n}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("nothing_like_it",)}, "matches no parameter"),
        ({"freeze": (".",)}, "leaves nothing to train"),
        ({"lowest": 9}, "has 2 layers"),
    ],
)
def test_mistakes_are_errors(options: dict, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        FREEZE(**options).wrap(model_of("llama"), "causal_lm")


def test_a_share_of_the_layers() -> None:
    """Card 46: a quarter, a half, three quarters of the blocks, embeddings with them; none is full fine-tuning."""
    model = model_of("bert", num_hidden_layers=4)
    everything = {n for n, _ in model.named_parameters()}
    for share, blocks in ((0.25, 1), (0.5, 2), (0.75, 3), (0, 0)):
        FREEZE(lowest=share).wrap(model, "masked_lm")
        still = {n for n, p in model.named_parameters() if not p.requires_grad}
        lowest = tuple(f"bert.encoder.layer.{i}." for i in range(blocks))
        assert still == {n for n in everything if blocks and n.startswith(("bert.embeddings.", *lowest))}


def test_frozen_layers_without_dropout() -> None:
    """Asked for, what stays still computes as in use while the rest trains; else it keeps its dropout."""
    ids = torch.arange(5, 12)[None]
    for dropout in (True, False):
        model = FREEZE(lowest=1, dropout=dropout).wrap(model_of("bert", hidden_dropout_prob=0.5), "masked_lm").train()
        seen = []
        model.bert.encoder.layer[0].register_forward_hook(
            lambda m, a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for _ in range(2):
            model(input_ids=ids)
        assert torch.equal(seen[0], seen[1]) == (not dropout)
        assert model.bert.encoder.layer[1].training
