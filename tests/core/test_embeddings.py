"""Embeddings changed for one batch: NEFTune's noise has its size, and no layout of the batch changes it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.checks._models import PAD, groups, model_of, sources_targets, texts
from luthier.core.batch import collate_groups, collate_packed, collate_source_target, collate_text
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.core.noise import changed_embeddings, uniform_noise
from luthier.objectives.sft import SFT
from luthier.tuners.full import Full

CPU = torch.device("cpu")


def test_size_and_padding() -> None:
    """Uniform with the exact bound alpha / sqrt(L D), L real tokens; nothing on padding; fresh under another key."""
    batch = collate_text(list(texts()), PAD)
    noise = uniform_noise(batch, 5.0, 3, 400, CPU)
    for b, e in enumerate(texts()):
        bound = 5.0 / math.sqrt(len(e) * 400)
        mine = noise[b, : len(e)]
        assert mine.abs().max() <= bound
        assert mine.abs().max() > 0.99 * bound
        assert abs(mine.mean()) < 4 * bound / math.sqrt(3 * mine.numel())
        assert not noise[b, len(e) :].any()
    assert not torch.equal(noise, uniform_noise(batch, 5.0, 4, 400, CPU))
    assert not torch.equal(noise[0, 0], noise[1, 0]), "rows have their own noise"


def logp(batch: Any, model: Any = None) -> torch.Tensor:
    return Scorer(model or model_of("llama")).answer_logp(replace(batch, noise=(50.0, 3))).detach()


def test_layouts_agree() -> None:
    rows = list(texts())
    whole = logp(collate_text(rows, PAD))
    for found in (
        torch.cat([logp(collate_text([e], PAD)) for e in rows]),
        logp(collate_text(rows, PAD, "left")),
        logp(collate_packed([rows[:3], rows[3:]], PAD)),
    ):
        torch.testing.assert_close(found, whole, rtol=2e-5, atol=2e-5)
    pairs = list(groups())
    torch.testing.assert_close(
        logp(collate_groups(pairs, PAD)), logp(collate_groups(pairs, PAD, share_prompt=False)), rtol=2e-5, atol=2e-5
    )
    plain = Scorer(model_of("llama")).answer_logp(collate_text(rows, PAD)).detach()
    assert (whole - plain).abs().max() > 1e-3


def test_an_encoder_reads_the_noise() -> None:
    batch, model = collate_source_target(list(sources_targets()), PAD, PAD), model_of("t5")
    plain = Scorer(model).answer_logp(batch).detach()
    alone = torch.cat([logp(collate_source_target([e], PAD, PAD), model) for e in sources_targets()])
    torch.testing.assert_close(logp(batch, model), alone, rtol=2e-5, atol=2e-5)
    assert (logp(batch, model) - plain).abs().max() > 1e-3
    assert torch.equal(Scorer(model).answer_logp(batch).detach(), plain), "afterwards the model is as it was"


def test_only_these_ids_are_changed() -> None:
    model, batch = model_of("gpt2"), collate_text(list(texts()), PAD)
    copy = replace(batch, ids=batch.ids.clone())
    plain = Scorer(model).token_logp(batch).detach()
    with changed_embeddings(model, batch.ids, torch.zeros_like):
        assert torch.equal(Scorer(model).token_logp(copy).detach(), plain)
        assert not torch.equal(Scorer(model).token_logp(batch).detach(), plain)


def settings(**more: Any) -> TrainSettings:
    told = {"max_steps": 2, "learning_rate": 0.05, "optim": "sgd", "warmup_ratio": 0.0, "logging_steps": 1}
    return TrainSettings(**(told | more))


def fitted(**more: Any) -> tuple[list[float], Loop]:
    loop = Loop(model_of("llama"), Full(), SFT(), list(texts()), settings(**more), PAD)
    return [r["loss"] for r in loop.fit().log if "loss" in r], loop


def test_through_the_loop() -> None:
    """The same however a step is split; another at every step; none where it is not asked for or while evaluating."""
    whole, loop = fitted(per_device_train_batch_size=6, neftune_noise_alpha=50.0)
    split, _ = fitted(per_device_train_batch_size=1, gradient_accumulation_steps=6, neftune_noise_alpha=50.0)
    assert split == pytest.approx(whole, rel=1e-5)
    plain, _ = fitted(per_device_train_batch_size=6)
    assert abs(whole[0] - plain[0]) > 1e-3
    assert fitted(per_device_train_batch_size=6, neftune_noise_alpha=0.0)[0] == plain
    rows = list(texts())
    batch = collate_text(rows, PAD)
    said = SFT().compute(Scorer(loop.plain), batch)
    assert loop.held_out_loss(rows) == pytest.approx(float(said.sum) / said.weight, rel=1e-5)


def test_noise_and_kept_layers() -> None:
    with pytest.raises(LuthierError, match="neftune_noise_alpha"):
        fitted(per_device_train_batch_size=6, neftune_noise_alpha=5.0, cache_frozen_layers=True)
