"""Recipe first: what it chooses by, what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier import data
from luthier.core.config import ConfigError
from luthier.core.config import recipe as read
from luthier.core.teacher import TeacherStore, example_key
from luthier.objectives.first import FIRST as Objective
from luthier.recipes.first import divided, held_out_rows, least, recalibrated, saying
from luthier.verbs.load import load

torch.set_num_threads(1)
TASK = {
    "name": "sentiment", "scorer": "calibration", "data": "sandbox:labels?task=sentiment&split=test&n=10",
    "labels": ["negative", "positive"],
}  # fmt: skip


def told(folder: Path, **changes: Any) -> dict[str, Any]:
    made = {
        "model": "nano-1m", "procedure": {"name": "first", "teacher": "nano-1m", "tune": False, "grid": [2.0, 4.0]},
        "data": {"train": "sandbox:labels?task=sentiment&n=40", "val_size": 0.25}, "objective": "sft",
        "train": {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "torch_threads": 1},
        "evaluate": {"drift": False, "tasks": [TASK]}, "output_dir": str(folder / "run"),
    }  # fmt: skip
    return {**made, **changes}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        return luthier.run(told(folder), quiet=True).folder


def test_c_is_chosen_by_the_teacher_on_held_out_rows(done: Path, tmp_path: Path) -> None:
    """The table, computed again from the probabilities of the two labels."""
    found = json.loads((done / "first.json").read_text())
    assert [(r["calibration"], r["c"]) for r in found["table"]] == [("none", 1), ("temperature", 2), ("temperature", 4)]
    assert found["chosen"] == least(found["table"])
    rows, teacher = held_out_rows(read(told(tmp_path))), load("nano-1m")
    assert len(rows) == found["held_out_rows"] == 10
    right = []
    for row in rows:
        p = []
        for label in TASK["labels"]:
            context, answer = teacher.subject().encode_pair(row["prompt"], " " + label)
            with torch.no_grad():
                logp = teacher.model(torch.tensor([[*context, *answer]])).logits[0].log_softmax(-1)
            total = 0.0
            for at, token in enumerate(answer, len(context) - 1):
                top = logp[at].topk(5)
                inside = (top.indices == token).nonzero()
                heat = (top.values / 2.0).softmax(-1).log() + top.values.logsumexp(-1)
                total += float(heat[inside[0, 0]] if len(inside) else logp[at, token])
            p.append(total)
        nll = torch.tensor(p).log_softmax(-1)
        right.append(-float(nll[TASK["labels"].index(row["completion"].strip())]))
    assert found["table"][1]["nll"] == pytest.approx(sum(right) / len(right), rel=1e-4)


def test_no_row_that_is_trained_on_or_measured_chooses(tmp_path: Path) -> None:
    recipe = read(told(tmp_path))
    kept, held = data.split(data.read(recipe.data.train, seed=0), 0.25, seed=0)
    rows = held_out_rows(recipe)
    assert rows == held.rows
    assert not {r["prompt"] for r in rows} & {r["prompt"] for r in kept.rows}


def test_what_is_left_behind(done: Path) -> None:
    """The store serves another run by its file; its model is tuned by `first`, and the baseline stands beside."""
    store = TeacherStore.load(done / "teacher.safetensors")
    rows = data.prepare("sandbox:labels?task=sentiment&n=40", tokenizer=load("nano-1m").tokenizer).examples
    assert {example_key(e) for e in rows} == set(store.keys.tolist())
    found = json.loads((done / "first.json").read_text())
    assert set(found["captured"]) == {"mean", "fifth_percentile", "share_below_0.9"}
    assert set(found["baselines"]) == {"one_hot", "one_hot_with_temperature"}
    assert found["baselines"]["one_hot_with_temperature"]["T"] in (1.0, 2.0, 4.0)
    losses = [
        [json.loads(x)["loss"] for x in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (done, done / "one-hot")
    ]
    assert losses[0] != losses[1]
    assert "reliability" in (done / "report.html").read_text()
    again = told(done.parent, procedure=None, output_dir=str(done.parent / "again"), objective={
        "name": "first", "teacher": str(done / "teacher.safetensors"), "calibration": found["chosen"]["calibration"],
        "c": found["chosen"]["c"],
    })  # fmt: skip
    other = luthier.run(again, quiet=True)
    a, b = ((p / "metrics.jsonl").read_text().splitlines() for p in (done, other.folder))
    assert [json.loads(x)["loss"] for x in a] == [json.loads(x)["loss"] for x in b]


def test_refusals(tmp_path: Path) -> None:
    first = {"name": "first", "teacher": "nano-1m"}
    for changes, words in (
        ({"data": {"train": "sandbox:labels?task=sentiment&n=40"}}, "held-out rows"),
        ({"data": {"train": "sandbox:labels?task=sentiment&n=40", "eval": TASK["data"]}}, "other rows"),
        ({"evaluate": {"drift": False}}, "scorer calibration"),
        ({"procedure": {**first, "task": "other"}}, "no task 'other'"),
        ({"objective": {"name": "distill", "teacher": "nano-1m"}}, "use sft"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words) as error:
            luthier.run(told(tmp_path, **changes), quiet=True)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("calibration", "c"), [("none", 1.0), ("smoothing", 0.2), ("temperature", 3.0), ("probabilities", 0.2)]
)
def test_a_recalibrated_model_is_a_distribution(calibration: str, c: float) -> None:
    """Tokens outside the k likeliest keep their probability."""
    logits = 3 * torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(0))
    p, made = logits.softmax(-1), recalibrated(Objective("a teacher", 5, calibration, c))(logits).exp()  # type: ignore[arg-type]
    torch.testing.assert_close(made.sum(-1), torch.ones(2, 4))
    outside = torch.ones_like(p, dtype=torch.bool).scatter(-1, p.topk(5).indices, False)
    torch.testing.assert_close(made[outside], p[outside])
    assert torch.equal(made.argmax(-1), p.argmax(-1))


def _half(model: Any, ids: torch.Tensor, before: torch.Tensor) -> None:
    torch.testing.assert_close(model(ids).logits, before / 2)
    raise RuntimeError


def test_logits_are_changed_only_inside() -> None:
    model, ids = load("nano-1m").model.eval(), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(RuntimeError), saying(model, divided(2.0)):
            _half(model, ids, before)
        assert torch.equal(model(ids).logits, before)


def test_equals_are_told_apart_by_accuracy_then_order() -> None:
    rows = [
        {"ece": 0.1, "accuracy": 0.5, "c": 1},
        {"ece": 0.1, "accuracy": 0.6, "c": 2},
        {"ece": 0.1, "accuracy": 0.6, "c": 3},
    ]
    assert least(rows)["c"] == 2
    assert least([*rows, {"ece": 0.05, "accuracy": 0.1, "c": 4}])["c"] == 4
