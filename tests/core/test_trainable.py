"""The trainable set: whole tensors, blocks of fused ones, ties, and keeping the rest still."""

import pytest
import torch

from luthier.checks._models import model_of
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.core.trainable import Selection, trainable_names


def blocks_of(role: str, name: str = "gpt2"):
    model = model_of(name)
    selection = Selection()
    for layer in anatomy(model).layers:
        selection.add_matrix(model, layer.matrix(role))
    return model, selection


@pytest.mark.parametrize(("name", "role"), [("gpt2", "k"), ("phi3", "v"), ("phi3", "up"), ("gpt_neox", "q")])
def test_only_the_block_moves(name: str, role: str) -> None:
    model, selection = blocks_of(role, name)
    selection.apply(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    guard = selection.guard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5)
    for _ in range(3):
        model(input_ids=torch.arange(5, 15)[None], labels=torch.arange(5, 15)[None]).loss.backward()
        optimizer.step()
        guard.restore()
        optimizer.zero_grad()
    moved = 0
    for n, p in model.named_parameters():
        inside = torch.zeros_like(p, dtype=torch.bool)
        for dim, start, stop in selection.blocks.get(n, []):
            inside.narrow(dim, start, stop - start).fill_(True)
        assert torch.equal(p[~inside], before[n][~inside]), n
        moved += int((p != before[n]).sum())
    assert 0 < moved <= selection.count(model)


def test_all_blocks_together_are_a_whole() -> None:
    model, selection = blocks_of("q")
    for layer in anatomy(model).layers:
        for role in "kv":
            selection.add_matrix(model, layer.matrix(role))
    selection.apply(model)
    assert not selection.blocks
    assert "transformer.h.0.attn.c_attn.weight" in selection.whole


def test_tied_tensors_move_together_and_count_once() -> None:
    model = model_of("gpt2")
    selection = Selection(whole={"lm_head.weight"})
    selection.apply(model)
    assert trainable_names(model) == ["transformer.wte.weight"]
    assert selection.count(model) == model.lm_head.weight.numel()
    assert Selection(whole={"lm_head.weight", "transformer.wte.weight"}).count(model) == model.lm_head.weight.numel()


def test_heads_can_be_left_out_of_the_count() -> None:
    model = model_of("bert-classifier")
    everything = Selection(whole={n for n, _ in model.named_parameters()})
    head = sum(p.numel() for n, p in model.named_parameters() if n.startswith("classifier."))
    assert everything.count(model) - everything.count(model, heads=False) == head > 0


def test_unknown_names_are_errors() -> None:
    with pytest.raises(LuthierError, match=r"no such parameter: nowhere\.weight"):
        Selection(whole={"nowhere.weight"}).apply(model_of("llama"))


def test_a_released_guard_lets_go() -> None:
    model, selection = blocks_of("q")
    selection.apply(model)
    guard = selection.guard(model)
    guard.release()
    model(input_ids=torch.arange(5, 15)[None], labels=torch.arange(5, 15)[None]).loss.backward()
    gradient = model.transformer.h[0].attn.c_attn.weight.grad
    assert bool((gradient[:, 64:] != 0).any())
