"""Replaced token detection: labels, who gets a gradient, what the draw depends on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.checks._models import MASK, PAD, model_of, texts
from luthier.checks.objectives import gradients
from luthier.core import catalog
from luthier.core.batch import Batch, collate_text
from luthier.core.config import TrainSettings
from luthier.core.holes import Filling, dig
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.references import References

torch.set_num_threads(1)


def objective(**options: Any) -> Any:
    return replace(catalog.load("objectives", "rtd").example(), **options)


def batch(method: Any, seed: int = 1) -> Batch:
    return method.view(collate_text(list(texts()), PAD), 0, 10, np.random.default_rng(seed))


def certain(token: int) -> Any:
    """A model whose head says one token for sure, everywhere."""
    model = model_of("bert").double()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.cls.predictions.bias.zero_()
        model.cls.predictions.bias[token] = 200.0
    return model


def test_a_draw_that_hits_is_no_replacement() -> None:
    """The generator is sure of one token: only hidden places that were another one count as replaced."""
    method = objective(generator="untuned", rate=1.0)
    token = texts()[0].ids[1]
    found = method.compute(Scorer(model_of("bert").double(), beside=certain(token)), batch(method))
    places = [t for e in texts() for i, t in enumerate(e.ids) if i and e.counts[i]]
    assert found.figures["kept"][1] == sum(t == token for t in places) > 0
    assert found.figures["detected"][1] == sum(t != token for t in places)


def test_the_mask_token_is_never_drawn() -> None:
    method = objective(generator="untuned", rate=1.0)
    seen: list[torch.Tensor] = []
    model = model_of("bert").double()
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    method.compute(Scorer(model, beside=certain(MASK)), batch(method))
    assert MASK not in seen[-1]


def test_detection_gives_a_frozen_generator_no_gradient_and_starts_equal() -> None:
    method = objective(generator="untuned")
    model = model_of("bert")
    beside = copy.deepcopy(model)
    loss = method.compute(Scorer(model, beside=beside), batch(method))
    loss.sum.backward()
    assert all(p.grad is None for p in beside.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), beside.parameters(), strict=True))
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_draw_has_no_gradient() -> None:
    """Without detection the gradient is that of masked-LM on the same hidden tokens, a row's mean each."""
    method, model = objective(detection=0.0), model_of("bert").double()
    shown = batch(method)
    holes = shown.extras["holes"][0]
    hidden = replace(shown, source=holes.at, target=shown.target[holes.scored], owner=shown.owner[holes.scored])
    logp = Scorer(model).token_logp(hidden)
    scale = shown.owner.bincount().double() / hidden.owner.bincount()
    wanted = gradients(-(logp * scale[hidden.owner]).sum(), model)
    for name, gradient in gradients(method.compute(Scorer(model), shown).sum, model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-9)


def test_every_row_hides_a_token() -> None:
    plain = collate_text(list(texts()), PAD)
    for least in (0, 1, 2):
        holes = dig(plain, Filling("mask", MASK), 0.0, 3, least=least).extras["holes"][0]
        assert plain.owner[holes.scored].bincount(minlength=6).tolist() == [least] * 6
    some = dig(plain, Filling("mask", MASK), 0.4, 3).extras["holes"][0].at
    more = dig(plain, Filling("mask", MASK), 0.4, 3, least=1).extras["holes"][0].at
    assert set(some.tolist()) <= set(more.tolist())


@pytest.mark.parametrize("generator", ["itself", "untuned"])
def test_it_learns_to_detect(generator: str) -> None:
    method, model = objective(generator=generator, rate=0.4), model_of("bert")
    references = References(model=model_of("bert")) if generator == "untuned" else None
    settings = TrainSettings(
        max_steps=60, per_device_train_batch_size=6, learning_rate=3e-3, logging_steps=20, warmup_ratio=0.0
    )
    tuner = catalog.load("tuners", "full")()
    loop = Loop(tuner.wrap(model, "masked_lm"), tuner, method, list(texts()), settings, PAD, references=references)
    log = [row for row in loop.fit().log if "loss" in row]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["detected"] > log[0]["detected"]
