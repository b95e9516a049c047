"""Reference log-probabilities do not depend on the layout they were computed in, and are computed once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core import catalog
from luthier.core import references as references_module
from luthier.core.batch import GroupExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.references import reference_logp, references


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, max_position_embeddings=64))


EXAMPLES = [
    GroupExample(0, list(range(1, 20)), [[20, 21], [22, 23, 24]]),
    GroupExample(1, [5, 4, 3], [[9], [8, 7, 6, 5]]),
    GroupExample(2, list(range(30, 48)), [[1, 2, 3], [4]]),
]


@pytest.mark.parametrize("size", [1, 16])
def test_shared_prompts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    found = {}
    for share in (True, False):
        monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / str(share)))
        settings = TrainSettings(share_prompt=share, per_device_eval_batch_size=size)
        found[share], reused = reference_logp(_model(), EXAMPLES, 0, settings)
        assert not reused
        again, reused = reference_logp(_model(), EXAMPLES, 0, settings)
        assert reused
        torch.testing.assert_close(torch.cat(again), torch.cat(found[share]), rtol=0, atol=0)
    assert [len(p) for p in found[True]] == [2, 2, 2]
    torch.testing.assert_close(torch.cat(found[True]), torch.cat(found[False]))


def test_sets_that_begin_alike_share_their_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested subsets are asked about once, and a number does not depend on which of them came first."""
    monkeypatch.setattr("luthier.core.references.BLOCK", 2)
    asked: list[int] = []
    own = references_module._asked
    monkeypatch.setattr(references_module, "_asked", lambda m, block, *a: asked.append(len(block)) or own(m, block, *a))
    more, found = [*EXAMPLES, *EXAMPLES[:1]], {}
    for order in ((2, 4), (4, 2)):
        monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / str(order)))
        for n in order:
            found[order, n], _ = reference_logp(_model(), more[:n], 0, TrainSettings())
    assert asked == [2, 2, 2, 2], "the block in common was asked about once in either order"
    for n in (2, 4):
        torch.testing.assert_close(torch.cat(found[(2, 4), n]), torch.cat(found[(4, 2), n]), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(found[(2, 4), 4])[:4], torch.cat(found[(2, 4), 2]), rtol=0, atol=0)


def test_kto_shares_the_reference_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTO asks for a pair's two answers as DPO does: one file serves both; what it asks beside are mismatched answers."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    full, settings, found = catalog.load("tuners", "full")(), TrainSettings(), []
    for name in ("dpo", "kto", "ipo"):
        found.append(references(_model(), full, catalog.load("objectives", name)(), EXAMPLES, 0, settings))
    dpo, kto, ipo = found
    torch.testing.assert_close(torch.cat(list(dpo.answers)), torch.cat(list(kto.answers)), rtol=0, atol=0)
    assert (dpo.reused, ipo.reused) == (False, True) and dpo.companions is None and kto.companions is not None
    assert len(list((tmp_path / "references").iterdir())) == 2, "one of the pairs, one of the mismatched answers"


def test_held_out_pairs_have_references_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untouched model is its own reference on rows that it is not trained on: log 2 there too."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    objective, tuner = (catalog.load(a, n)() for a, n in (("objectives", "dpo"), ("tuners", "full")))
    settings = TrainSettings(max_steps=1, learning_rate=0.0, eval_strategy="epoch")
    model, held_out = _model(), EXAMPLES[2:]
    told = references(model, tuner, objective, EXAMPLES[:2], 0, settings, held_out)
    assert told is not None
    loop = Loop(
        tuner.wrap(model, "causal_lm", 0),
        tuner,
        objective,
        EXAMPLES[:2],
        settings,
        0,
        held_out=held_out,
        references=told,
    )
    row = next(r for r in loop.fit().log if "eval_loss" in r)
    assert row["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
