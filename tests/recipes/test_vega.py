"""Vega: which labels are doubted, which rows join, what no trick does, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.core import config
from luthier.core.batch import LabelledExample
from luthier.recipes._relabel import confident, folds, joined, out_of_fold, suspects, targets, with_targets

torch.set_num_threads(1)


def rows(n: int = 20, texts: int = 7) -> list[LabelledExample]:
    """Every text stands about three times."""
    return [LabelledExample(i, [5 + i % texts, 9], i % 2) for i in range(n)]


def test_folds_hold_every_row_once_and_a_text_in_one_of_them() -> None:
    parts = folds(rows(), 3, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(20))
    texts = [{tuple(rows()[i].ids) for i in part} for part in parts]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    assert folds(rows(), 3, seed=2) != parts


def test_no_row_is_judged_by_a_model_that_saw_its_text() -> None:
    def says(train: list[LabelledExample], held: list[LabelledExample]) -> np.ndarray:
        seen = {tuple(e.ids) for e in train}
        assert not seen & {tuple(e.ids) for e in held}
        assert len(train) + len(held) == 20
        return np.array([[e.row, 0.0] for e in held])

    assert out_of_fold(rows(), folds(rows(), 4, 0), says)[:, 0].tolist() == list(range(20))


def test_doubt_is_by_a_threshold_of_each_class() -> None:
    """Class 1 is always said hesitantly, so that a hesitant 1 counts there; an equally hesitant 0 does not."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.4, 0.6], [0.43, 0.57], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 1, 0, 1])
    t = [(0.9 + 0.8 + 0.43) / 3, (0.55 + 0.6 + 0.4) / 3]
    assert t[1] <= 0.57
    assert t[0] > 0.6
    assert suspects(p, labels).tolist() == [False, False, False, False, True, False]


def test_targets_blend_doubted_rows_alone() -> None:
    p, labels = np.array([[0.1, 0.9], [0.3, 0.7]]), np.array([0, 0])
    found = targets(p, labels, np.array([True, False]), 0.5)
    assert found.tolist() == [[0.55, 0.45], [1.0, 0.0]]
    assert targets(p, labels, np.array([True, True]), 0.0).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_rows_that_join_keep_the_shares_of_the_classes() -> None:
    p = np.array([[0.99, 0.01], [0.95, 0.05], [0.92, 0.08], [0.05, 0.95], [0.4, 0.6]])
    assert confident(p, np.array([0.5, 0.5]), 0.9) == [0, 3]  # the surest of each
    assert confident(p, np.array([0.75, 0.25]), 0.9) == [0, 1, 2, 3]
    assert confident(p, np.array([0.5, 0.5]), 1.01) == []
    assert confident(p[:3], np.array([0.5, 0.5]), 0.9) == []  # of one class alone: none


def test_rows_that_join_have_their_own_numbers_and_all_extras() -> None:
    known = with_targets(rows(4), np.full((4, 2), 0.5))
    p = np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    out = joined(known, rows(3), p, [0, 2], 0.25)
    assert [e.row for e in out] == [0, 1, 2, 3, 4, 6]
    assert [e.label for e in out[4:]] == [1, 0]
    assert [e.extras["share"] for e in out] == [1.0] * 4 + [0.25] * 2
    assert out[4].extras["target"] == [0.0, 1.0]


# ------------------------------------------------------------------------------------------------ whole runs


def told_rows(n: int, start: int = 0) -> list[dict[str, str]]:
    """Two classes that one word tells apart."""
    kinds = ("the soup of the king was good", "the boss saw the report in the market")
    nouns = ("cake", "rice", "fish", "song", "drum", "ship", "map", "race", "goal", "ball")
    numbers = range(start, start + n)
    return [{"text": f"{kinds[i % 2]} {nouns[i % 10]} {nouns[i // 10]}", "label": "ab"[i % 2]} for i in numbers]


def write(file: Path, lines: list[dict[str, str]]) -> str:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(file)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    unlabelled = write(tmp_path / "unlabelled.jsonl", told_rows(16, 60))
    return {
        "model": "nano-encoder",
        "data": {"train": write(tmp_path / "train.jsonl", told_rows(24))},
        "objective": "classification",
        "procedure": {"name": "vega", "tricks": [], "folds": 2, "unlabelled": unlabelled},
        "train": {"max_steps": 16, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "torch_threads": 1},
        "output_dir": str(tmp_path / "run"),
    }


def weights(told: dict[str, Any], folder: Path, **procedure: Any) -> tuple[dict[str, torch.Tensor], Path]:
    one = {**told, "output_dir": str(folder)}
    if procedure:
        one["procedure"] = {**told["procedure"], **procedure}
    out = luthier.run(one, quiet=True).folder
    return load_file(out / "model" / "model.safetensors"), out


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_tricks_at_zero_are_a_plain_run_bit_for_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["train"]["max_steps"] = 3
    plain, _ = weights({**recipe, "procedure": None}, tmp_path / "plain")
    told: list[dict[str, Any]] = [
        {"tricks": []}, {"tricks": ["calibration"], "rho": 0.0}, {"tricks": ["transduction"], "threshold": 1.01},
        {"tricks": ["adversary"], "push": {"strength": 0.0}},
    ]  # fmt: skip
    for i, options in enumerate(told):
        assert equal(plain, weights(recipe, tmp_path / str(i), **options)[0]), options
    assert not equal(plain, weights(recipe, tmp_path / "on", tricks=["adversary"])[0])


def test_no_label_of_the_unlabelled_is_read(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The same rows with all labels turned round, and without any, give the same model."""
    found, turned, models = told_rows(16, 60), {"a": "b", "b": "a"}, []
    kinds = (found, [r | {"label": turned[r["label"]]} for r in found], [{"text": r["text"]} for r in found])
    for i, lines in enumerate(kinds):
        file = write(tmp_path / f"rows{i}.jsonl", lines)
        one, out = weights(recipe, tmp_path / str(i), tricks=["transduction"], threshold=0.0, unlabelled=file)
        models.append(one)
        told = json.loads((out / "vega.json").read_text())
        assert told["transductive"] == "yes"
        assert told["transduction"]["kept"] > 2
    assert equal(models[0], models[1])
    assert equal(models[0], models[2])


def test_what_was_done_is_told(recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {**recipe, "procedure": {**recipe["procedure"], "tricks": ["calibration"]}}
    done = luthier.run(one)
    told = json.loads((done.folder / "vega.json").read_text())
    assert told["transductive"] == "no"
    assert told["calibration"]["rows"] == 24
    assert told["calibration"]["doubted"] == len(told["calibration"]["doubted_rows"])
    said = capsys.readouterr().err
    assert "of 24 labels are doubted" in said
    assert "transductive: no" in said
    assert np.allclose(np.array(json.loads((done.folder / "out-of-fold.json").read_text())).sum(1), 1)


def test_what_is_missing_or_does_not_fit_is_refused(recipe: dict[str, Any]) -> None:
    for changes, words in (
        ({"procedure": {"name": "vega", "tricks": ["pretraining"]}}, "procedure.pretrain.data"),
        ({"procedure": {"name": "vega", "tricks": ["transduction"]}}, "procedure.unlabelled"),
        ({"procedure": {"name": "vega", "folds": 1}}, "at least 2"),
        ({"objective": "regression"}, "is for classes"),
    ):
        with pytest.raises(config.ConfigError, match=words):
            luthier.run({**recipe, **changes}, quiet=True)
