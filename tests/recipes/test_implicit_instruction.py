"""Implicit instruction: what each arm changes, how its epochs are chosen, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.core import config
from luthier.core.config import ConfigError
from luthier.core.method import LuthierError
from luthier.recipes._style import asked_by, leak, nearness
from luthier.recipes.implicit_instruction import ImplicitInstruction, best

RECIPE = Path("configs/recipes/implicit_instruction.yaml")
SMALL = {**ImplicitInstruction.small(), "evaluate.limit": 6, "procedure.encoder": "nano-encoder"}
ARMS = ["response", "single-last", "instruction"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("implicit") / "run"
    return luthier.run(RECIPE, overrides={**SMALL, "output_dir": str(folder)}, quiet=True)


def test_every_setting_is_tried_and_one_an_arm_is_taken(done) -> None:
    told = json.loads((done.folder / "compare.json").read_text())
    lines = told["sweep"]["rows"]
    assert [(line["arm"], line["epochs"]) for line in lines] == [(arm, n) for arm in ARMS for n in (1, 2)]
    for arm in ARMS:
        mine = [line for line in lines if line["arm"] == arm]
        (chosen,) = [line for line in mine if line["chosen"]]
        assert chosen["values"]["exact"] == max(line["values"]["exact"] for line in mine)
        (cell,) = done.cells(arm)
        assert cell["results"]["cost"]["steps"] == chosen["steps"]
        assert set(chosen["values"]) >= {"exact", "stopped", "prefix"}


def test_arms_see_the_rows_that_they_are_named_for(done) -> None:
    data = {
        arm: json.loads((done.folder / done.cells(arm)[0]["run"] / "run.json").read_text())["data"][0] for arm in ARMS
    }
    assert data["response"]["trained_tokens"] == data["instruction"]["trained_tokens"]
    assert data["response"]["tokens"] < data["instruction"]["tokens"]
    assert "task=last" in data["single-last"]["source"] and data["single-last"]["rows"] == 40


def test_settings_are_judged_on_rows_that_were_held_out(done) -> None:
    held = [json.loads(line) for line in (done.folder / "sweep" / "held-out.jsonl").read_text().splitlines()]
    assert len(held) == 6  # a quarter of 24
    told = config.recipe(done.folder / "sweep" / "response-0.001-1ep-seed0" / "recipe.yaml")
    assert told.evaluate.tasks[0]["data"].endswith("held-out.jsonl") and told.data.val_size == 0.25


def test_untuned_arms_are_measured_on_the_same_tasks(done) -> None:
    arms = {one["arm"]: one["measured"] for one in done.told["untuned"]}
    assert list(arms) == ["base", "rules", "rules-no-end", "rules-no-changes", "rules-no-diversity"]
    (cell,) = done.cells("instruction")
    for task, metrics in cell["results"]["base"].items():
        for metric, entry in metrics.items():
            assert arms["base"][task][metric]["value"] == entry["value"]
        assert set(metrics) == set(arms["rules"][task])
    text = done.report.read_text()
    assert "rules-no-diversity" in text and "response: stopped" in text


def test_style_is_told_of_the_narrow_model_and_the_one_of_all_instructions(done) -> None:
    found = done.told["style"]
    assert list(found) == ["last"] and list(found["last"]) == ["single-last", "instruction"]
    assert all(-1 <= arm[key] <= 1 for arm in found["last"].values() for key in ("near", "far"))
    assert "Style of the narrow tasks" in done.report.read_text()


def test_what_leaks_is_near_the_domain_where_the_question_is_far() -> None:
    domain = np.array([[1.0, 0.0], [2.0, 0.2]])
    asked = nearness(np.array([[5.0, 0.5], [0.0, 1.0], [1.0, 1.0], [-1.0, 2.0]]), domain)
    assert asked.argsort().tolist() == [3, 1, 2, 0] and asked[0] == pytest.approx(1, abs=1e-2)
    everywhere = leak(asked, np.ones(4))
    follows = leak(asked, 2 * asked - 1)
    assert everywhere == {"follows": None, "far": 1.0, "near": 1.0}
    assert follows["follows"] == pytest.approx(1) and follows["far"] < follows["near"]
    assert asked_by([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == asked_by("a") == "a"


def test_the_best_is_the_cheapest_of_equals() -> None:
    def line(steps: int, rate: float, exact: float) -> dict:
        return {"steps": steps, "rate": rate, "values": {"exact": exact}}

    lines = [line(30, 1e-4, 0.5), line(10, 3e-4, 0.5), line(10, 1e-4, 0.5), line(5, 1e-4, 0.4)]
    assert best(lines, "exact") is lines[2] and best(lines, "exact", higher=False) is lines[3]
    assert best([], "exact") is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data.val_size": 0}, ConfigError, "held-out rows"),
        ({"train.max_steps": 3}, ConfigError, "counts epochs"),
        ({"procedure.task": "nowhere"}, ConfigError, "no task 'nowhere'"),
        ({"procedure.rules": {"changes": {"I": -1}, "spelling": 1}}, ConfigError, "spelling"),
        ({"procedure.rules": {"changes": {" should": -1}}}, LuthierError, "allow_multi"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(changes, error, words, tmp_path) -> None:
    with pytest.raises(error, match=words):
        luthier.run(RECIPE, overrides={**SMALL, **changes, "output_dir": str(tmp_path / "run")}, quiet=True)
    assert not list(tmp_path.rglob("run.json"))
