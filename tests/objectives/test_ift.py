"""IFT: its limits, what its inputs are made of, and the table that they come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.checks._models import PAD, model_of, texts
from luthier.checks.objectives import gradients
from luthier.core import catalog
from luthier.core.batch import Batch, TextExample, collate_text
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.noise import changed_embeddings
from luthier.objectives.ift import by_sequence, discounted, mixed

torch.set_num_threads(1)


def objective(**options: Any) -> Any:
    return replace(catalog.load("objectives", "ift").example(), **options)


def batch_of(method: Any, examples: Any = None, step: int = 0, total: int = 10, seed: int = 0) -> Batch:
    batch = collate_text(list(texts() if examples is None else examples), PAD)
    return method.view(batch, step, total, np.random.default_rng(seed))


def tied() -> Any:
    model = model_of("llama", tie_word_embeddings=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return model


# --------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("model_is", ["tied", "untied"])
def test_without_mixing_and_looking_ahead_it_is_sft_with_a_mean_over_sequences(model_is: str) -> None:
    model = tied() if model_is == "tied" else model_of("llama")
    model, batch = model.double(), batch_of(objective())
    told = objective(mix=0.0, decay=0.0, source="mask")
    found = told.compute(Scorer(model), batch_of(told))
    grid, real = by_sequence(-Scorer(model).token_logp(batch), batch)
    wanted = (grid.sum(1) / real.sum(1)).sum()
    torch.testing.assert_close(found.sum, wanted)
    assert found.weight == len(texts())
    mine, theirs = gradients(found.sum, model), gradients(wanted, model)
    for name in set(theirs) - {"model.embed_tokens.weight"}:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-8)
    assert ("model.embed_tokens.weight" in mine) == (model_is == "tied")  # through the head alone


def test_no_first_pass_where_nothing_is_mixed() -> None:
    model, passes = model_of("llama"), []
    model.model.register_forward_pre_hook(lambda *a: passes.append(1))
    for mix, wanted in ((0.0, 1), (0.2, 2)):
        told, scorer = objective(mix=mix), Scorer(model).warm()
        passes.clear()
        found = told.compute(scorer, batch_of(told))
        assert len(passes) == wanted
        assert ("loss/gold" in found.figures) == (mix > 0)


def seen_inputs(method: Any, model: Any, batch: Batch) -> Tensor:
    """What reaches the first layer in the pass with gradient, (B, T, D)."""
    kept: list[Tensor] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    method.compute(Scorer(model).warm(), batch)
    handle.remove()
    return kept[-1]


def test_inputs_are_mixed_one_place_after_the_prediction() -> None:
    """At lambda 1 every counted token is replaced by what the model says in its place from the true past."""
    model, told = model_of("llama"), objective(mix=1.0)
    batch = batch_of(told)
    found, table = seen_inputs(told, model, batch), model.get_input_embeddings().weight
    with torch.no_grad():
        said = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.argmax(-1)
    for b, e in enumerate(texts()):
        for i, token in enumerate(e.ids):
            wanted = (
                int(said[b, i - 1]) if i > 0 and e.counts[i] else token
            )  # never what is said at i: that is the answer
            torch.testing.assert_close(found[b, i], table[wanted].detach())


def test_lambda_scales_the_mixture() -> None:
    model, told = model_of("llama"), objective(mix=0.3)
    inputs = {mix: seen_inputs(objective(mix=mix), model, batch_of(objective(mix=mix))) for mix in (0.0, 1.0)}
    torch.testing.assert_close(seen_inputs(told, model, batch_of(told)), 0.7 * inputs[0.0] + 0.3 * inputs[1.0])


def test_a_model_that_predicts_every_token_reads_them_unmixed() -> None:
    model = model_of("llama")
    ids, prompt = [10, 11, 12], 3
    with torch.no_grad():
        for _ in range(5):  # its own greedy continuation
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    told = objective(mix=0.6)
    batch = batch_of(told, [TextExample(0, ids, [i >= prompt for i in range(len(ids))])])
    torch.testing.assert_close(seen_inputs(told, model, batch)[0], model.get_input_embeddings().weight[ids].detach())


def test_first_pass_leaves_no_trace() -> None:
    """Dropout draws in the second pass what it would without a first, and modes are as before."""
    model = model_of("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3).train()
    told, states = objective(mix=0.2), []
    for mix in (0.0, 0.2):
        torch.manual_seed(3)
        method = replace(told, mix=mix)
        method.compute(Scorer(model).warm(), batch_of(method))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert model.training


def test_ramp_noise_and_draws() -> None:
    ramp = objective(mix=0.4, mix_start=0.1, ramp=0.5)
    found = [float(batch_of(ramp, step=s, total=10).extras["mix"][0]) for s in (0, 2, 5, 9)]
    assert found == pytest.approx([0.1, 0.22, 0.4, 0.4])
    noisy = objective(mix=0.5, mix_noise=2.0)
    mix = batch_of(noisy).extras["mix"]
    assert ((mix >= 0) & (mix <= 1)).all()
    assert len(set(mix.tolist())) > 2
    alone = batch_of(noisy, [texts()[3]]).extras["mix"]
    assert float(alone[0]) == float(mix[3]), "a row draws for itself"
    model, drawn = model_of("llama"), objective(mix=1.0, temperature=0.7)
    one, two, other = (seen_inputs(drawn, model, batch_of(drawn, seed=s)) for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    cold = objective(mix=1.0, temperature=1e-4)
    greedy = objective(mix=1.0)
    torch.testing.assert_close(seen_inputs(cold, model, batch_of(cold)), seen_inputs(greedy, model, batch_of(greedy)))


def test_models_that_scale_their_embeddings() -> None:
    """Mixing all with itself is the plain model, whatever it does to embeddings inside."""
    for name in ("gemma2", "granite", "opt", "gpt2"):
        model, batch = model_of(name), batch_of(objective())
        scorer = Scorer(model).warm()
        target = batch.target.to(torch.float32)
        mix = torch.full((len(target),), 0.5)
        table = model.get_input_embeddings()
        with changed_embeddings(
            model, batch.ids, lambda own, e=table, b=batch, m=mix, t=target: mixed(own, e, b, m, t)
        ):
            found = scorer.token_logp(batch)
        torch.testing.assert_close(found, scorer.token_logp(batch), rtol=1e-5, atol=1e-5)


def fit(model: Any, steps: int = 4) -> Any:
    tuner = catalog.load("tuners", "full")()
    settings = TrainSettings(max_steps=steps, per_device_train_batch_size=6, learning_rate=0.01, weight_decay=0.1)
    Loop(tuner.wrap(model, "causal_lm", 0), tuner, objective(), list(texts()), settings, PAD).fit()
    return model


def test_the_table_stays_where_the_head_is_not_tied_and_follows_where_it_is() -> None:
    before = model_of("llama").get_input_embeddings().weight
    assert torch.equal(fit(model_of("llama")).get_input_embeddings().weight, before)
    model = fit(tied())
    assert not torch.equal(model.get_input_embeddings().weight, tied().get_input_embeddings().weight)
    told = objective(mix=1.0)
    batch = batch_of(told)
    table, found = model.get_input_embeddings().weight.detach(), seen_inputs(told, model, batch)
    nearest = torch.cdist(found[0, : len(texts()[0])], table).min(1).values
    assert float(nearest.max()) < 1e-4, "inputs are rows of the table of now, not of one kept from the start"


# -------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("n", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_discounted_sum(n: int, decay: float) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    wanted = torch.zeros_like(x)
    after = torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(n)):
        wanted[:, t] = after = x[:, t] + decay * after
    torch.testing.assert_close(discounted(x, decay), wanted)
    if decay == 1.0:
        torch.testing.assert_close(discounted(x, decay), x.flip(1).cumsum(1).flip(1))


def grid() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64)
    return real * torch.rand(3, 5, generator=g, dtype=torch.float64) * 4, real


@pytest.mark.parametrize("norm", ["L1", "L2", "softmax", "log"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("source", ["loss", "logps", "mask"])
def test_weights_have_mean_one_and_nothing_in_the_padding(norm: str, side: str, source: str) -> None:
    losses, real = grid()
    w = objective(norm=norm, side=side, source=source).weights(losses, real)
    torch.testing.assert_close(w.sum(1), real.sum(1))
    assert (w[real == 0] == 0).all()
    assert (w[real == 1] > 0).all()


def test_weights_at_their_limits() -> None:
    losses, real = grid()
    position = objective(source="mask", decay=1.0).weights(losses, real)
    torch.testing.assert_close(
        position[0] / position[0, -1], torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    )
    flat = objective(source="mask", decay=0.0).weights(losses, real)
    torch.testing.assert_close(flat, real)
    own = objective(decay=0.0).weights(losses, real)  # no look ahead: a token counts by its own loss, not equally
    torch.testing.assert_close(own[0], 5 * losses[0] / losses[0].sum())
    one, two = (objective(source=s).weights(losses, real) for s in ("loss", "logps"))
    torch.testing.assert_close(one, two)  # the scale goes away under L1, and under softmax it does not
    one, two = (objective(source=s, norm="softmax").weights(losses, real) for s in ("loss", "logps"))
    assert not torch.allclose(one, two)


def test_detached_weights() -> None:
    losses, real = grid()
    losses.requires_grad_(True)
    assert objective().weights(losses, real).requires_grad
    w = objective(detach_weights=True).weights(losses, real)
    assert not w.requires_grad
    n = real.sum(1, keepdim=True)
    gradient = torch.autograd.grad((w * losses / n).sum(), losses)[0]
    torch.testing.assert_close(gradient, w / n)
