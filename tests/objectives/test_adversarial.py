"""Adversarial tuning: what it is at its limits, what it leaves alone, and that dropout and splits are not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.checks._models import PAD, labelled, model_of
from luthier.checks.objectives import gradients
from luthier.core import catalog
from luthier.core.batch import Batch, collate_labelled
from luthier.core.config import TrainSettings, build
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.core.noise import same_dropout

torch.set_num_threads(1)


def objective(**options: Any) -> Any:
    return replace(catalog.load("objectives", "adversarial").example(), **options)


def shown(method: Any, rows: list[int] | None = None, problem: str = "single_label_classification") -> Batch:
    examples = [labelled(problem)[i] for i in rows or range(6)]
    return method.view(collate_labelled(examples, PAD), 0, 10, np.random.default_rng(1))


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"step_size": 0.0, "sigma": 0.0}])
def test_without_a_push_it_is_the_task(options: dict[str, float]) -> None:
    model, plain = (
        model_of("bert-classifier"),
        build("objectives", {"name": "classification", "focal": 2.0}, "objective"),
    )
    method = objective(of={"name": "classification", "focal": 2.0}, **options)
    batch = shown(method)
    mine, other = (o.compute(Scorer(model), batch) for o in (method, plain))
    assert torch.equal(mine.sum, other.sum)
    wanted = gradients(other.sum, model)
    for name, gradient in gradients(mine.sum, model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-7)


def test_without_strength_a_run_is_a_plain_run_bit_for_bit() -> None:
    settings = TrainSettings(max_steps=3, per_device_train_batch_size=3, learning_rate=0.01, logging_steps=1)
    found = []
    for told in ({"name": "adversarial", "strength": 0.0}, {"name": "classification"}):
        model = model_of("bert-classifier", hidden_dropout_prob=0.2)
        tuner = catalog.load("tuners", "full")()
        method = build("objectives", told, "objective")
        Loop(tuner.wrap(model, "classification"), tuner, method, list(labelled()), settings, PAD).fit()
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_the_inner_step_leaves_no_gradient_behind() -> None:
    model, method = model_of("bert-classifier"), objective()
    batch = shown(method)
    outputs = method.said(Scorer(model), batch).detach()
    d = method.push(Scorer(model), batch, outputs, same_dropout(torch.device("cpu")))
    assert not d.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert (d[~batch.mask] == 0).all()
    assert (d[batch.mask].abs().amax(-1) > 0).all()


def test_the_push_goes_where_the_answer_changes_more() -> None:
    """A step up the gradient moves the answer further than a random one of the same size, and several further still."""
    model = model_of("bert-classifier").double()
    told = [{"steps": 0, "sigma": 0.01}, {"steps": 1, "sigma": 1e-4, "step_size": 0.01}]
    told.append({"steps": 5, "sigma": 1e-4, "step_size": 0.01})
    found = []
    for options in told:
        method = objective(**options)
        loss = method.compute(Scorer(model), shown(method))
        found.append(float(loss.figures["smoothness"][0]))
    assert found[0] * 2 < found[1] < found[2] / 2


def test_dropout_is_not_measured() -> None:
    """With dropout and no push both passes say the same; the random state afterwards is that after one pass."""
    model = model_of("bert-classifier", hidden_dropout_prob=0.3).train()
    method = objective(step_size=0.0, sigma=0.0)
    after = []
    for strength in (0.0, 1.0):
        torch.manual_seed(5)
        loss = replace(method, strength=strength).compute(Scorer(model), shown(method))
        after.append(torch.get_rng_state())
    assert float(loss.figures["smoothness"][0]) == 0.0
    assert torch.equal(*after)


def test_relative_pushes_do_not_depend_on_the_scale_of_embeddings() -> None:
    """BERT normalises the sum with positions, so scaling all three tables scales the embedding and nothing else."""
    found = []
    for scale in (1.0, 10.0):
        model = model_of("bert-classifier").double()
        with torch.no_grad():
            tables = model.bert.embeddings
            for table in (tables.word_embeddings, tables.position_embeddings, tables.token_type_embeddings):
                table.weight.mul_(scale)
            tables.LayerNorm.eps = 0.0
        found.append([float(objective(relative=r).compute(Scorer(model), shown(objective())).figures["smoothness"][0])
                      for r in (True, False)])  # fmt: skip
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[1][1] < 0.1 * found[0][1]


def test_special_tokens_are_not_pushed() -> None:
    class Tokenizer:
        all_special_ids = labelled()[0].ids[:1]

    method, model = objective().for_tokenizer(Tokenizer()), model_of("bert-classifier")
    batch = shown(method)
    d = method.push(Scorer(model), batch, method.said(Scorer(model), batch).detach(), same_dropout(torch.device("cpu")))
    assert (d[batch.ids == Tokenizer.all_special_ids[0]] == 0).all()


def test_held_out_rows_have_the_task_alone() -> None:
    model, method = model_of("bert-classifier"), objective()
    batch = method.view(shown(method), -1, 10, np.random.default_rng(0))
    with torch.no_grad():
        assert "smoothness" not in method.compute(Scorer(model), batch).figures


def test_soft_targets_and_shares_of_rows() -> None:
    """A target of one class is that class; the loss is linear in targets and shares."""
    model, method = model_of("bert-classifier").double(), build("objectives", {"name": "classification"}, "objective")
    batch = collate_labelled(list(labelled()), PAD)
    plain = method.compute(Scorer(model), batch).sum
    one = torch.nn.functional.one_hot(batch.label, 3).double()
    hard = replace(batch, extras={"target": one.tolist(), "share": [1.0] * 6})
    assert torch.equal(method.compute(Scorer(model), hard).sum, plain)
    logp = model(**batch.inputs()).logits.log_softmax(-1)
    soft = (0.5 * one + 0.5 * torch.tensor([0.2, 0.3, 0.5]).double()).tolist()
    found = method.compute(Scorer(model), replace(batch, extras={"target": soft, "share": [0.5] * 6})).sum
    torch.testing.assert_close(found, -0.5 * (torch.tensor(soft).double() * logp).sum())


def test_what_has_no_head_is_refused() -> None:
    with pytest.raises(LuthierError, match="classification or regression"):
        objective(of={"name": "sft"})
