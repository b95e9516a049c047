"""Label smoothing of SFT equals torch's, through every kind of head and in chunks; without it nothing changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.checks._models import MORE_ARCHITECTURES, PAD, model_of, sources_targets, texts
from luthier.core import catalog, config
from luthier.core.batch import collate_source_target, collate_text
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError

SFT: Any = catalog.load("objectives", "sft")


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "granite", "gemma2", "phi3"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_equals_torch(name: str, chunk: int | None) -> None:
    assert name in MORE_ARCHITECTURES or name in ("llama", "gpt2", "t5")
    model = model_of(name).double()
    batch = (
        collate_source_target(list(sources_targets()), PAD, PAD) if name == "t5" else collate_text(list(texts()), PAD)
    )
    loss = SFT(label_smoothing=0.3).compute(Scorer(model, chunk=chunk), batch)
    logits = model(**batch.inputs(torch.float64)).logits.flatten(0, 1)[batch.source]
    wanted = cross_entropy(logits, batch.target, label_smoothing=0.3, reduction="sum")
    torch.testing.assert_close(loss.sum, wanted, rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    found, said = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss.sum, wanted))
    for a, b in zip(found, said, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_token_weights_and_a_moving_adapter_on_the_head() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("llama"), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    batch = collate_text(list(texts()), PAD)
    batch.weights = torch.linspace(0, 2, len(batch.target))
    loss = SFT(label_smoothing=0.2).compute(Scorer(model), batch)
    logits = model(**batch.inputs()).logits.flatten(0, 1)[batch.source]
    wanted = (cross_entropy(logits, batch.target, label_smoothing=0.2, reduction="none") * batch.weights).sum()
    torch.testing.assert_close(loss.sum, wanted, rtol=2e-5, atol=2e-5)
    assert loss.weight == float(batch.weights.sum())


def test_none_is_plain_sft_to_the_last_bit() -> None:
    model, batch = model_of("llama"), collate_text(list(texts()), PAD)
    plain = -Scorer(model).token_logp(batch).sum()
    assert torch.equal(SFT().compute(Scorer(model), batch).sum, plain)
    assert torch.equal(SFT(label_smoothing=0.0).compute(Scorer(model), replace(batch)).sum, plain)


def test_by_its_name_in_a_recipe() -> None:
    told = config.recipe({"model": "nano-1m", "objective": "sft", "label_smoothing": 0.1})
    assert told.method("objectives", "objective") == SFT(label_smoothing=0.1)
    with pytest.raises(LuthierError, match="between 0 and 1"):
        SFT(label_smoothing=1.5)
