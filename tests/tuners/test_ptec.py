"""PTEC: label order, padding, counts, reloading; the common checks hold the rest."""

import json
from dataclasses import replace

import peft
import pytest
import torch

from luthier.checks._models import CLASSES, PAD, WIDTH, labelled, model_of
from luthier.core import catalog
from luthier.core.batch import collate_labelled
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError
from luthier.objectives.classification import Classification
from luthier.sandbox import tokenizer

PTEC = catalog.load("tuners", "ptec")
EXAMPLES = list(labelled("multi_label_classification", 8))


def wrapped(tuner=None):
    base = model_of("llama-classifier", problem_type="multi_label_classification")
    return (tuner or PTEC.example()).wrap(base, "classification").eval()


def logits(model, side: str) -> torch.Tensor:
    batch = collate_labelled(EXAMPLES, PAD, side)
    return model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits


@torch.no_grad()
def test_padding_on_either_side_and_none() -> None:
    model = wrapped()
    left, right = logits(model, "left"), logits(model, "right")
    alone = torch.cat([model(input_ids=torch.tensor([e.ids])).logits for e in EXAMPLES])
    assert torch.allclose(left, right, atol=1e-5)
    assert torch.allclose(alone, right, atol=1e-5)


def test_count_is_prompt_and_head() -> None:
    model = wrapped()
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == PTEC.example().tokens * WIDTH + CLASSES * WIDTH


def test_two_rates_reach_the_optimiser() -> None:
    model, tuner = wrapped(), PTEC.example()
    (group,) = tuner.groups(model)
    assert group["lr_scale"] == tuner.head_rate
    assert [n.split(".")[-4:] for n in group["params"]] == [["score", "modules_to_save", "default", "weight"]]


@torch.no_grad()
def test_reload_gives_equal_logits(tmp_path) -> None:
    model = wrapped()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    base = model_of("llama-classifier", problem_type="multi_label_classification")
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(logits(again, "right"), logits(model, "right"))


def test_label_names_become_ids() -> None:
    words = tokenizer()
    tuner = replace(PTEC.example(), label_ids=()).for_data(words, ["food market", "music"])
    assert words.decode(tuner.label_ids) == " food market music"


def test_loss_by_hand_with_weights_of_rare_labels() -> None:
    objective = Classification(pos_weight="frequency").for_examples(EXAMPLES)
    y = torch.tensor([e.label for e in EXAMPLES])
    weight = [float(y.sum(0).max() / max(1.0, float(n))) for n in y.sum(0)]
    assert objective.pos_weight == pytest.approx(weight)
    z = torch.randn(len(EXAMPLES), CLASSES, dtype=torch.float64)
    p = z.sigmoid()
    by_hand = -(torch.tensor(weight).double() * y * p.log() + (1 - y) * (1 - p).log()).mean(1)
    assert torch.allclose(objective.loss(z, y), by_hand)
    capped = Classification(pos_weight="frequency", pos_weight_cap=1.0).for_examples(EXAMPLES)
    assert capped.pos_weight == (1.0,) * CLASSES


def test_order_of_labels_in_the_data_changes_nothing(tmp_path) -> None:
    from luthier import data

    names = ("food", "music", "travel")
    rows = [{"text": "the king saw the soup", "labels": ["food", "travel"]}, {"text": "a drum", "labels": ["music"]}]
    turned = [{**r, "labels": r["labels"][::-1]} for r in rows]
    model, objective = wrapped(), Classification()
    losses = []
    for told in (rows, turned):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in told))
        found = data.prepare(str(file), tokenizer=tokenizer(), type="labelled", options={"label_names": names}).examples
        for e in found:
            e.ids = [i % 90 + 5 for i in e.ids]  # the tiny model's vocabulary
        losses.append(objective.compute(Scorer(model), collate_labelled(found, PAD)).sum)
    assert torch.equal(*losses)


def test_frequency_is_for_several_labels_and_needs_them() -> None:
    with pytest.raises(LuthierError, match="class_weights"):
        Classification(pos_weight="frequency").for_examples(list(labelled()))
    with pytest.raises(LuthierError, match="for_examples"):
        Classification(pos_weight="frequency").loss(torch.zeros(1, 3), torch.ones(1, 3))
