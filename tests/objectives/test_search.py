"""Retrieval objectives: which documents a query chooses from, groups that are never split, and what a tuned model is worth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import luthier
from luthier.checks._models import PAD, model_of, searches
from luthier.checks.objectives import _Everything
from luthier.core import catalog
from luthier.core.batch import SearchExample, collate_searches
from luthier.core.config import ConfigError, TrainSettings
from luthier.core.embedding import pooled, similarity
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import LuthierError, Refusal
from luthier.objectives.contrastive import Contrastive, choices
from luthier.objectives.rerank import Rerank
from luthier.verbs.load import load


def plain_searches(n: int, negatives: int) -> list[SearchExample]:
    """Every text once."""
    rng = np.random.default_rng(0)
    make = lambda k: rng.integers(5, 90, k).tolist()  # noqa: E731
    return [
        SearchExample(
            i, make(3), [make(4) for _ in range(1 + negatives)], [10 * i + k for k in range(1 + negatives)], i
        )
        for i in range(n)
    ]


# --------------------------------------------------------------------------------------------- who is a choice


@pytest.mark.parametrize(("n", "negatives"), [(4, 0), (4, 1), (3, 2)])
def test_scores_are_queries_by_all_documents_and_the_right_one_is_their_label(n: int, negatives: int) -> None:
    batch = collate_searches(plain_searches(n, negatives), PAD)
    objective, model = Contrastive(group=n), model_of("bert-embedding")
    scores, allowed = objective.scores(Scorer(model), batch)
    assert scores.shape == allowed.shape == (n, n * (1 + negatives))
    assert allowed.all()
    labels = torch.arange(n) * (1 + negatives)
    mean = objective.compute(Scorer(model), batch).sum / n
    torch.testing.assert_close(mean, torch.nn.functional.cross_entropy(scores, labels))


def test_what_answers_a_query_is_not_its_negative() -> None:
    """Row 1 has row 0's document as its right one; row 2 asks row 0's question; row 3 has a negative that answers row 0."""
    rows = plain_searches(4, 1)
    rows[1] = replace(rows[1], keys=[rows[0].keys[0], 11])
    rows[2] = replace(rows[2], query_key=rows[0].query_key)
    rows[3] = replace(rows[3], keys=[30, rows[0].keys[0]])
    seen = choices(collate_searches(rows, PAD), 4)
    assert seen[0].tolist() == [True, True, False, True, False, True, True, False]  # not row 1's, 2's and 3's copies
    assert seen[1].tolist() == [False, True, True, True, True, True, True, False]
    assert seen[2].tolist() == [False, True, False, True, True, True, True, False]
    assert seen[3].all()


def test_nothing_is_shared_between_groups() -> None:
    seen = choices(collate_searches(plain_searches(5, 0), PAD), 2)
    assert seen.int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 0]] * 2 + [[0, 0, 0, 0, 1]]


def test_a_query_alone_without_negatives_costs_nothing_and_moves_nothing() -> None:
    model = model_of("bert-embedding")
    loss = Contrastive(group=2).compute(Scorer(model), collate_searches(plain_searches(1, 0), PAD))
    loss.sum.backward()
    assert loss.sum == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("side", ["right", "left"])
def test_vectors_do_not_see_padding(side: str) -> None:
    for name in ("bert-embedding", "llama-embedding"):
        model, examples = model_of(name), list(searches())
        batch = collate_searches(examples, PAD, side)
        texts = [e.query for e in examples] + [d for e in examples for d in e.documents]
        alone = [model(input_ids=torch.tensor([t])).last_hidden_state[0] for t in texts]
        for how, of in (("cls", lambda h: h[0]), ("last", lambda h: h[-1]), ("mean", lambda h: h.mean(0))):
            found = Scorer(model).embeddings(batch, how)  # type: ignore[arg-type]
            torch.testing.assert_close(found, torch.stack([of(h) for h in alone]), rtol=1e-4, atol=1e-4)


def test_half_precision_states_are_pooled_and_scored_in_full() -> None:
    states = torch.randn(2, 300, 8).to(torch.float16) * 60
    vectors = pooled(states, torch.ones(2, 300, dtype=torch.bool), "mean")
    torch.testing.assert_close(vectors, states.double().mean(1).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert similarity(vectors, vectors, "dot").dtype == torch.float32


# ------------------------------------------------------------------------------------------------------- groups


def losses(size: int, pieces: int, group_by_length: bool, **more: Any) -> list[float]:
    settings = TrainSettings(
        max_steps=5, per_device_train_batch_size=size, gradient_accumulation_steps=pieces, learning_rate=0.02,
        optim="sgd", logging_steps=1, group_by_length=group_by_length, **more,
    )  # fmt: skip
    examples = plain_searches(13, 1)
    loop = Loop(
        model_of("bert-embedding"), _Everything(), Contrastive(group=2, temperature=8.0), examples, settings, PAD
    )
    return [r["loss"] for r in loop.fit().log if "loss" in r]


@pytest.mark.parametrize("group_by_length", [True, False])
def test_a_loss_does_not_depend_on_how_a_step_is_split(group_by_length: bool) -> None:
    """13 rows in steps of 8: the second step of an epoch ends with a group of one."""
    wanted = losses(8, 1, group_by_length)
    for size, pieces in ((2, 4), (4, 2)):
        assert losses(size, pieces, group_by_length) == pytest.approx(wanted, rel=1e-5)


def test_a_batch_that_would_split_a_group_is_refused() -> None:
    with pytest.raises(
        LuthierError, match=r"train.per_device_train_batch_size 3 is not a multiple of objective.group 2"
    ):
        losses(3, 1, True)


def test_rows_without_anything_to_tell_apart_are_refused() -> None:
    rows = [replace(e, query=[]) for e in plain_searches(2, 0)]
    for objective in (Contrastive(group=1), Rerank()):
        with pytest.raises(LuthierError, match=r"row 0 has no negative.*data.hard_negatives"):
            objective.for_examples(rows)
    Contrastive(group=2).for_examples(rows)


def test_held_out_loss_is_that_of_whole_groups() -> None:
    examples, model = plain_searches(7, 0), model_of("bert-embedding")
    for size in (1, 2, 5, 16):
        settings = TrainSettings(max_steps=1, per_device_train_batch_size=2, per_device_eval_batch_size=size)
        loop = Loop(model, _Everything(), Contrastive(group=2, temperature=8.0), examples, settings, PAD)
        loop.wrapped, loop.scorer = model, Scorer(model)
        found = loop.held_out_loss(examples)
        order = sorted(range(6), key=lambda i: len(examples[i]))
        wanted = Contrastive(group=2, temperature=8.0).compute(
            Scorer(model.eval()), collate_searches([examples[i] for i in [*order, 6]], PAD)
        )
        assert found == pytest.approx(float(wanted.sum) / 7, rel=1e-5)


@pytest.mark.parametrize("paired", [False, True])
def test_kept_activations_give_the_same_losses(paired: bool) -> None:
    """The lowest layer stands still: what is kept of queries and documents is what would be computed."""
    tuner = catalog.load("tuners", "freeze")(lowest=1)
    name, objective = (
        ("bert-classifier", Rerank()) if paired else ("bert-embedding", Contrastive(group=2, temperature=8.0))
    )
    curves = []
    for keep in (True, False):
        model = model_of(name, num_labels=1) if paired else model_of(name)
        settings = TrainSettings(
            max_steps=6, per_device_train_batch_size=2, learning_rate=0.02, optim="sgd", logging_steps=1,
            cache_frozen_layers=keep,
        )  # fmt: skip
        loop = Loop(tuner.wrap(model, objective.task), tuner, objective, list(searches(paired=paired)), settings, PAD)
        curves.append([r["loss"] for r in loop.fit().log if "loss" in r])
        assert (loop.kept is not None) == keep
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


# ------------------------------------------------------------------------------------------------------ tuners


TEXTS = ["Which tool is gold?", "The posa is a gold tool. It comes from Lose and smells of peas.", "a"]


def tuned(folder: Path, model: str, tuner: dict[str, Any], objective: dict[str, Any], **data: Any) -> Any:
    recipe = {
        "model": model, "data": {"train": "sandbox:documents?task=search&n=16", **data}, "tuner": tuner,
        "objective": objective, "output_dir": str(folder), "evaluate": {"drift": False},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "torch_threads": 1},
    }  # fmt: skip
    return luthier.run(recipe, quiet=True)


@pytest.mark.parametrize("tuner", ["full", "lora", "iaa", "bottleneck", "ia3", "bitfit"])
def test_an_index_of_the_reloaded_model_is_the_index(tuner: str, tmp_path: Path) -> None:
    objective = {"name": "contrastive", "group": 4, "similarity": "cosine"}
    done = tuned(tmp_path / "run", "nano-encoder", {"name": tuner}, objective)
    index = done.loaded.subject().embeddings(TEXTS)
    for place in (tmp_path / "run", next((tmp_path / "run").glob("*/config.json"), tmp_path / "run").parent):
        again = load(place if place.name == "model" else tmp_path / "run")
        assert again.task == "embedding"
        np.testing.assert_allclose(again.subject().embeddings(TEXTS), index, rtol=1e-5, atol=1e-6)
    before = load("nano-encoder", "embedding").subject().embeddings(TEXTS)
    assert np.abs(index - before).max() > 1e-3


def test_a_decoder_is_an_encoder_of_texts_by_its_last_state(tmp_path: Path) -> None:
    objective = {"name": "contrastive", "group": 4, "pooling": "last", "similarity": "cosine"}
    done = tuned(tmp_path / "run", "nano-1m", {"name": "lora"}, objective)
    again = load(tmp_path / "run")
    assert again.task == "embedding"
    found, wanted = (m.subject().embeddings(TEXTS, pooling="last") for m in (again, done.loaded))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_reranker_comes_back_with_its_head(tuner: str, tmp_path: Path) -> None:
    done = tuned(tmp_path / "run", "nano-encoder", {"name": tuner}, {"name": "rerank"}, hard_negatives=1)
    pairs = [(TEXTS[0], t) for t in TEXTS]
    scores = done.loaded.subject().class_probabilities(pairs)
    assert scores.shape == (3, 1)
    again = load(tmp_path / "run").subject().class_probabilities(pairs)
    np.testing.assert_allclose(again, scores, rtol=1e-5)


def test_paired_is_the_objectives_to_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective 'rerank' needs data.paired: True"):
        tuned(tmp_path / "run", "nano-encoder", {"name": "full"}, {"name": "rerank"}, hard_negatives=1, paired=False)


@pytest.mark.parametrize("tuner", ["iaa", "lora", "bottleneck"])
def test_untrained_modules_leave_vectors_as_they_were(tuner: str) -> None:
    method, model = catalog.load("tuners", tuner).example(), model_of("bert-embedding")
    batch = collate_searches(list(searches()), PAD)
    before = Scorer(model).embeddings(batch, "mean")
    wrapped = method.wrap(model, "embedding").eval()
    torch.testing.assert_close(Scorer(wrapped).embeddings(batch, "mean"), before, rtol=0, atol=0)
    moving = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert moving == method.parameter_count(model_of("bert-embedding"))


def test_soft_prompts_say_that_they_need_a_head() -> None:
    with pytest.raises(Refusal, match="bare BertModel"):
        catalog.load("tuners", "prompt_tuning").example().wrap(model_of("bert-embedding"), "embedding")


def test_an_encoder_decoder_is_refused_in_a_line() -> None:
    with pytest.raises(LuthierError, match="an encoder or a decoder"):
        load("nano-seq2seq", "embedding")


class _Groups(LoopCallback):
    def __init__(self) -> None:
        self.seen: list[list[frozenset[int]]] = []

    def step(self, loop: Loop) -> None:
        rows = [i for chunk in loop._chunks(loop.step_index - 1) for i in chunk]
        self.seen.append([frozenset(rows[i : i + 2]) for i in range(0, len(rows), 2)])


def test_groups_are_others_in_every_epoch() -> None:
    watch = _Groups()
    settings = TrainSettings(num_train_epochs=4, per_device_train_batch_size=4, learning_rate=0.0)
    Loop(
        model_of("bert-embedding"), _Everything(), Contrastive(group=2), plain_searches(12, 0), settings, PAD,
        callbacks=[watch],
    ).fit()  # fmt: skip
    epochs = [frozenset(g for step in watch.seen[3 * e : 3 * e + 3] for g in step) for e in range(4)]
    assert len(set(epochs)) == 4
    assert all(sorted(i for g in groups for i in g) == list(range(12)) for groups in epochs)


def test_start_is_the_log_of_the_choices() -> None:
    model = model_of("llama-embedding")
    with torch.no_grad():
        model.norm.weight.zero_()
    loss = Contrastive(group=4).compute(Scorer(model), collate_searches(plain_searches(4, 1), PAD))
    assert float(loss.sum) / 4 == pytest.approx(math.log(8))
