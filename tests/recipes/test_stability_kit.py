"""The stability kit: what it recommends, keeps, compares and says; the statistics over seeds."""

import itertools
import json

import numpy as np
import pytest
import torch

import luthier
from luthier.checks._models import model_of
from luthier.core import config
from luthier.core.anatomy import anatomy
from luthier.core.config import TrainSettings
from luthier.core.loop import make_optimizer
from luthier.core.method import LuthierError
from luthier.recipes._seeds import Outcome, Seeds, judge
from luthier.recipes.stability_kit import StabilityKit, grid, recommend


@pytest.fixture
def small(tmp_path) -> dict:
    return {
        "model": "nano-encoder",
        "data": {"train": "sandbox:labels?task=sentiment_label&n=24", "val_size": 0.5},
        "objective": "classification",
        "stability": {"mode": "auto", "seeds": 2},
        "train": {"max_steps": 2, "learning_rate": 1e-3, "torch_threads": 1},
        "output_dir": str(tmp_path / "run"),
    }


def test_auto_compares_chooses_and_tells(small: dict, capsys) -> None:
    done = luthier.run(small)
    told = json.loads((done.folder / "stability.json").read_text())
    assert [r["setting"] for r in told["table"]] == ["full", "freeze 0.25", "freeze 0.5", "freeze 0.75"]
    assert all(r["runs"] == 2 for r in told["table"])
    assert done.results["cost"]["steps"] == 2
    run = json.loads((done.folder / "run.json").read_text())["recipe"]
    assert run["tuner"]["name"] == told["chosen"]["tuner"]["name"]
    assert run["train"]["warmup_ratio"] == 0.1
    assert run["train"]["decay_vectors"] is False
    assert run["train"]["learning_rate"] == 1e-3
    said = capsys.readouterr().err
    assert "a model of base size" in said
    assert "chosen on 12 held-out rows" in said


def test_by_its_name_as_a_procedure(small: dict) -> None:
    by_name = {**small, "stability": {}, "procedure": {"name": "stability_kit", "seeds": 2}}
    assert (luthier.run(by_name, quiet=True).folder / "stability.json").exists()
    with pytest.raises(config.ConfigError, match="keep one of them"):
        luthier.run({**by_name, "stability": "auto"}, quiet=True)


def test_an_unknown_procedure_is_an_error(small: dict) -> None:
    with pytest.raises(config.ConfigError, match="did you mean 'stability_kit'"):
        luthier.run({**small, "procedure": "stabilty_kit"}, quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"data.val_size": 0}, "held-out rows: set data.val_size"), ({"tuner": "llrd"}, "remove the key 'tuner'")],
)
def test_what_it_cannot_choose_on_is_an_error(small: dict, change: dict, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        luthier.run(small, overrides=change, quiet=True)


def test_recommendations() -> None:
    base, large = (anatomy(model_of("bert", num_hidden_layers=n)) for n in (12, 24))
    assert recommend(base, "classification", 500)[0] == "freeze"
    assert recommend(large, "classification", 500)[0] == "llrd"
    assert recommend(large, "regression", 100)[0] == "reinit"
    assert recommend(base, "regression", 5000)[0] == "freeze"
    assert len(grid("reinit", base)) == len(grid("freeze", base)) == 3


def test_training_is_long_enough_unless_the_recipe_says_how_long() -> None:
    told = config.recipe({"model": "nano-encoder", "train": {"per_device_train_batch_size": 10, "weight_decay": 0.1}})
    made = StabilityKit(steps=200).steadily(told, 60)
    assert made.num_train_epochs == 34
    assert made.weight_decay == 0.1
    assert made.adam_correct_bias
    short = config.recipe({"model": "nano-encoder", "train": {"num_train_epochs": 1}})
    assert StabilityKit().steadily(short, 60).num_train_epochs == 1
    assert StabilityKit(steps=10**6).steadily(told, 60).num_train_epochs == 100


def test_best_of_k_is_the_mean_over_all_choices() -> None:
    scores = [0.3, 0.9, 0.5, 0.5, 0.7]
    seeds = Seeds("x", [Outcome(s, False) for s in scores])
    for k in range(1, 6):
        wanted = np.mean([max(c) for c in itertools.combinations(scores, k)])
        assert seeds.best_of(k) == pytest.approx(wanted)


def test_failures() -> None:
    """A correlation that is not defined is a failure and never a NaN."""
    assert judge(np.ones((6, 1)), [0.0, 1, 2, 3, 4, 5], True) == Outcome(0.0, True)
    assert judge(np.full((6, 1), np.nan), [0.0, 1, 2, 3, 4, 5], True) == Outcome(0.0, True)
    assert judge(np.arange(6.0)[:, None], [0.0, 1, 2, 3, 4, 5], True) == Outcome(pytest.approx(1.0), False)
    always_one = np.tile([0.0, 1.0], (10, 1))
    assert judge(always_one, [1] * 6 + [0] * 4, False) == Outcome(0.6, True)
    assert judge(np.eye(2)[[1] * 6 + [0] * 4], [1] * 6 + [0] * 4, False) == Outcome(1.0, False)


def test_without_bias_correction_the_first_step_is_larger() -> None:
    """By (1 - beta1) / sqrt(1 - beta2) = 3.16; later steps are Adam's without the two corrections."""
    moved = {}
    for correct in (True, False):
        weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        settings = TrainSettings(adam_correct_bias=correct, adam_epsilon=1e-12)
        optimizer = make_optimizer([{"params": [weight], "lr": 0.01}], settings)
        m, v, wanted = 0.0, 0.0, torch.zeros(5, dtype=torch.float64)
        for step in range(4):
            weight.grad = torch.arange(1.0, 6, dtype=torch.float64) * (step + 1)
            optimizer.step()
            m, v = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad**2
            wanted = wanted - 0.01 * m / (v.sqrt() + 1e-12)
            moved.setdefault(correct, []).append(weight.detach().clone())
    assert torch.allclose(moved[False][-1], wanted, rtol=1e-9)
    assert torch.allclose(moved[False][0] / moved[True][0], torch.full((5,), 0.1 / 0.001**0.5, dtype=torch.float64))


def test_biases_and_norms_can_be_left_out_of_weight_decay() -> None:
    from luthier.checks import tuners as battery
    from luthier.checks._models import WORLDS
    from luthier.core import catalog

    model = model_of("bert")
    run = battery.loop(catalog.load("tuners", "llrd")(), WORLDS[2], model, 1, decay_vectors=False)
    groups = run._groups()
    assert {p.ndim for g in groups for p in g["params"] if g.get("weight_decay") == 0.0} == {1}
    assert all(p.ndim >= 2 for g in groups for p in g["params"] if "weight_decay" not in g)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert groups[-1]["scale"] == 1.0
