"""Holes in the past of an answer: where they are, what stands in them, and that nothing but the model's input changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from luthier.checks._models import PAD, model_of, sources_targets, texts
from luthier.core import catalog
from luthier.core.batch import Batch, collate_packed, collate_source_target, collate_text
from luthier.core.config import TrainSettings
from luthier.core.holes import PREDICTED, Kind
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.tuners.full import Full

BASE: Any = catalog.load("objectives", "masked_thought").example()
SFT: Any = catalog.load("objectives", "sft")()
KINDS = get_args(Kind)


def view(objective: Any, batch: Batch, step: int = 5, seed: int = 4) -> Batch:
    return objective.view(batch, step, 10, np.random.default_rng(seed))


def loss(objective: Any, batch: Batch, model: Any = None) -> torch.Tensor:
    return objective.compute(Scorer(model or model_of("llama")), batch).sum.detach()


def test_rate_zero_is_sft_to_the_last_bit() -> None:
    batch = collate_text(list(texts()), PAD)
    none = replace(BASE, rate=0.0)
    assert view(none, batch) is batch
    assert torch.equal(loss(none, view(none, batch)), loss(SFT, batch))
    assert none.weight(batch) == SFT.weight(batch)


def test_rate_follows_the_steps() -> None:
    objective = replace(BASE, rate=0.4, ramp=0.5)
    assert [objective.share(s, 100) for s in (0, 25, 50, 75, 99)] == pytest.approx([0, 0.2, 0.4, 0.4, 0.4])
    assert objective.share(-1, 100) == 0, "held-out rows have no holes"
    assert replace(BASE, rate=0.4, ramp=0.0).share(0, 100) == 0.4


def test_every_place_of_an_answer_can_be_a_hole_and_no_other() -> None:
    batch = collate_text(list(texts()), PAD)
    all_of_them = view(replace(BASE, rate=1.0), batch)
    for b, e in enumerate(texts()):
        for t in range(len(e)):
            assert (all_of_them.ids[b, t] == BASE.mask_id) == (e.counts[t] and t > 0)
    assert torch.equal(all_of_them.target, batch.target)
    assert torch.equal(all_of_them.source, batch.source)


def test_the_question_only_where_asked_and_never_its_first_token() -> None:
    batch = collate_text(list(texts()), PAD)
    everywhere = view(replace(BASE, rate=1.0, where="all"), batch)
    changed = everywhere.ids == BASE.mask_id
    assert torch.equal(changed[:, 1:], batch.mask[:, 1:])
    assert not changed[:, 0].any()
    with pytest.raises(LuthierError, match="where: answer"):
        replace(BASE, kind="argmax", where="all")


def test_an_encoder_is_left_alone() -> None:
    batch = collate_source_target(list(sources_targets()), PAD, PAD)
    shown = view(replace(BASE, rate=1.0), batch)
    assert torch.equal(shown.ids, batch.ids)
    for b, e in enumerate(sources_targets()):
        assert shown.decoder_ids[b, : len(e.target)].tolist() == [PAD] + [BASE.mask_id] * (len(e.target) - 1)
    both = view(replace(BASE, rate=1.0, where="all"), batch)
    assert (both.ids[:, 1:][batch.mask[:, 1:]] == BASE.mask_id).all()
    assert torch.equal(both.decoder_ids, shown.decoder_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_draw_for_themselves(kind: str) -> None:
    """Rows alone, packed, padded left and in another order read what they read together."""
    objective = replace(BASE, kind=kind, mask_id=-1)
    whole = loss(objective, view(objective, collate_text(list(texts()), PAD)))
    for batches in (
        [collate_text([e], PAD) for e in texts()],
        [collate_text(list(texts())[::-1], PAD, "left")],
        [collate_packed([texts()[:2], texts()[2:]], PAD)],
    ):
        parts = torch.stack([loss(objective, view(objective, b)) for b in batches])
        torch.testing.assert_close(parts.sum(), whole, rtol=2e-5, atol=2e-5)
    assert abs(whole - loss(SFT, collate_text(list(texts()), PAD))) > 1e-3, "nothing was hidden"


def test_visits_differ_and_the_same_step_does_not() -> None:
    batch = collate_text(list(texts()), PAD)
    shown = [tuple(view(BASE, batch, seed=s).ids.flatten().tolist()) for s in (0, 1, 2, 0)]
    assert len(set(shown)) > 1
    assert shown[0] == shown[3]


def _by_embeddings(kind: str, batch: Batch) -> torch.Tensor:
    """The same loss with embeddings that were changed by hand."""
    model = model_of("llama")
    hidden = torch.zeros(batch.ids.shape, dtype=torch.bool)
    hidden.view(-1)[batch.source + 1] = True
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        embedded = model.get_input_embeddings()(batch.ids).clone()
        p = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.softmax(-1)
        before = p.roll(1, 1)  # what is said at a place about itself
        new = {
            "mask": table.mean(0).expand_as(embedded),
            "zero": torch.zeros_like(embedded),
            "argmax": table[before.argmax(-1)],
            "mixture": 0.7 * embedded + 0.3 * before @ table,
        }[kind]
        embedded = torch.where(hidden[..., None], new, embedded)
        logits = model(inputs_embeds=embedded, attention_mask=batch.mask.long()).logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits[batch.source], batch.target, reduction="sum")


@pytest.mark.parametrize("kind", ["mask", "zero", "argmax", "mixture"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_what_stands_in_a_hole(kind: str, chunk: int | None) -> None:
    objective = replace(BASE, kind=kind, rate=1.0, mask_id=-1)
    batch = collate_text(list(texts()), PAD)
    found = objective.compute(Scorer(model_of("llama"), chunk=chunk), view(objective, batch)).sum.detach()
    torch.testing.assert_close(found, _by_embeddings(kind, batch), rtol=2e-5, atol=2e-5)


def test_drop_is_not_attended_to() -> None:
    """What is dropped is read by its own place alone: other ids there change what it predicts and nothing else."""
    objective = replace(BASE, kind="drop", rate=1.0)
    batch = collate_text([texts()[0]], PAD)
    other = replace(batch, ids=batch.ids.clone())
    at = batch.source[1] + 1
    other.ids[0, at] = 7 if other.ids[0, at] != 7 else 8
    a, b = (Scorer(model_of("llama")).token_logp(view(objective, x)).detach() for x in (batch, other))
    assert ((a - b).abs() > 1e-6).tolist() == [s == at for s in batch.source.tolist()]


def test_pad_as_mask_is_no_drop() -> None:
    """Padding is known by length, so the pad token in a hole is attended to like any other."""
    batch = collate_text(list(texts()), PAD)
    pads, drops = replace(BASE, mask_id=PAD, rate=1.0), replace(BASE, kind="drop", rate=1.0)
    assert abs(loss(pads, view(pads, batch)) - loss(drops, view(drops, batch))) > 1e-3


def test_samples_follow_the_model() -> None:
    """Over many visits a sampled token is as frequent as the model says."""
    objective = replace(BASE, kind="sample", rate=1.0)
    batch, model = collate_text([texts()[0]], PAD), model_of("llama")
    scorer, seen = Scorer(model), []
    original = scorer.token_logp
    scorer.token_logp = lambda b: seen.append(int(b.ids.flatten()[b.source[0] + 1])) or original(b)  # type: ignore[method-assign]
    with torch.no_grad():
        p = model(batch.ids).logits[0, batch.source[0]].softmax(-1)
        for s in range(300):
            objective.compute(scorer, view(objective, batch, seed=s))
    best = int(p.argmax())
    share, sd = float(p[best]), float((p[best] * (1 - p[best]) / 300).sqrt())
    assert abs(seen.count(best) / 300 - share) < 4 * sd + 1e-9


@pytest.mark.parametrize("kind", ["mask", *PREDICTED])
def test_the_model_keeps_its_size_and_held_out_rows_their_text(kind: str) -> None:
    """Nothing is added to the vocabulary; with a rate of one, held-out loss is still that of SFT."""
    objective = replace(BASE, kind=kind, rate=1.0, mask_id=-1)
    model = model_of("llama")
    size = sum(p.numel() for p in model.parameters())
    settings = TrainSettings(max_steps=1, per_device_train_batch_size=6, learning_rate=0.0, optim="sgd")
    loop = Loop(model, Full(), objective, list(texts()), settings, PAD)
    loop.fit()
    assert sum(p.numel() for p in model.parameters()) == size
    plain = Loop(model, Full(), SFT, list(texts()), settings, PAD)
    plain.fit()
    assert loop.held_out_loss(list(texts())) == plain.held_out_loss(list(texts()))


def test_tokenizer_gives_the_mask() -> None:
    from luthier.checks.data import vocabulary

    tokenizer = vocabulary()
    found = catalog.load("objectives", "masked_thought")().for_tokenizer(tokenizer)
    assert (found.mask_id, found.vocabulary) == (tokenizer.mask_token_id, len(tokenizer))
    assert set(found.special) == set(tokenizer.all_special_ids)
