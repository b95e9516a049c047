"""Sentence contrast: its limits, what is no negative, and a mixture with replaced token detection."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import collate_packed, collate_text
from luthier.core.config import TrainSettings, build
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError

torch.set_num_threads(1)
PARTS = (
    {"name": "rtd", "mask_id": 1, "rate": 0.3},
    {"name": "sentence_contrast", "weight": 0.5, "group": 3, "task": "masked_lm"},
)


def objective(**options: Any) -> Any:
    return replace(catalog.load("objectives", "sentence_contrast").example(), **options)


def loss(method: Any, model: Any, examples: list[Any] | None = None) -> torch.Tensor:
    batch = method.view(collate_text(examples or list(texts()), PAD), 0, 10, np.random.default_rng(1))
    return method.compute(Scorer(model), batch).sum / 6


def test_limits_of_the_temperature() -> None:
    """Equal draws of different sentences: 0 as it falls, log of the group's size as it grows."""
    model = model_of("bert-embedding").double()
    assert float(loss(objective(group=6, dropout=0.0, temperature=1e-4), model)) < 1e-6
    assert float(loss(objective(group=6, dropout=0.0, temperature=1e6), model)) == pytest.approx(math.log(6), abs=1e-4)


def test_two_draws_differ_and_dropout_zero_does_not() -> None:
    model, batch = model_of("bert-embedding"), collate_text(list(texts()), PAD)
    for dropout, equal in ((0.2, False), (0.0, True)):
        method = objective(dropout=dropout)
        first, second = (method._vectors(Scorer(model), batch, key) for key in (11, 12))
        assert torch.equal(first, second) == equal


def test_the_same_text_is_no_negative() -> None:
    """A group of copies of one sentence: nothing to tell apart, whatever the padding."""
    copies = [replace(texts()[0], row=i) for i in range(6)]
    assert float(loss(objective(group=6), model_of("bert-embedding"), copies)) == pytest.approx(0.0, abs=1e-6)


def test_packed_rows_are_refused() -> None:
    method = objective()
    batch = collate_packed([list(texts()[:3]), list(texts()[3:])], PAD)
    with pytest.raises(LuthierError, match="packing: false"):
        method.compute(Scorer(model_of("bert-embedding")), method.view(batch, 0, 1, np.random.default_rng(0)))


def test_a_head_is_passed_over() -> None:
    """Vectors of a masked-LM model are those of the same body without a head."""
    model, batch = model_of("bert"), collate_text(list(texts()), PAD)
    with torch.no_grad():
        found = Scorer(model).embeddings(batch, "mean")
        states = model.bert(**batch.inputs()).last_hidden_state
    mask = batch.mask[..., None]
    torch.testing.assert_close(found, (states * mask).sum(1) / mask.sum(1))


def test_mixture_is_the_weighted_sum() -> None:
    """Phase two: with groups that are kept whole, and the same numbers in small micro-batches."""
    mixture = build("objectives", {"name": "mixed", "parts": PARTS}, "objective").for_examples(list(texts()))
    assert mixture.task == "masked_lm"
    assert mixture.group == 3
    found = []
    for size, pieces in ((3, 2), (6, 1)):
        model, tuner = model_of("bert"), catalog.load("tuners", "full")()
        settings = TrainSettings(
            max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=pieces, optim="sgd",
            learning_rate=1e-4, warmup_ratio=0.0, logging_steps=1, max_grad_norm=0.0,
        )  # fmt: skip
        log = Loop(tuner.wrap(model, "masked_lm"), tuner, mixture, list(texts()), settings, PAD).fit().log
        found.append([row["loss"] for row in log if "loss" in row])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    row = log[0]
    assert row["loss"] == pytest.approx(row["rtd"] + 0.5 * row["sentence_contrast"], rel=1e-4)


def test_parts_of_different_heads_are_refused() -> None:
    with pytest.raises(LuthierError, match="the same head"):
        build("objectives", {"name": "mixed", "parts": [PARTS[0], {"name": "sft"}]}, "objective")
