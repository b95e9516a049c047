"""Okapi: services, what the tasks of a language become, and what does not fit; the whole is run by the checks of procedures."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier import sandbox
from luthier.core import config
from luthier.core.config import ConfigError
from luthier.core.method import LuthierError
from luthier.data._self_instruct import leaked
from luthier.recipes._services import Service
from luthier.recipes.okapi import Okapi, _Language, _with_model
from luthier.sandbox.worlds import errands
from luthier.sandbox.worlds.languages import LANGUAGES, PIVOT

CONFIG = Path(__file__).parents[2] / "configs" / "recipes" / "okapi.yaml"

# ------------------------------------------------------------------------------------------------- services


def test_a_service_is_asked_once_for_each_thing_and_again_by_another_version(tmp_path: Path) -> None:
    heard: list[Any] = []

    def function(text: str, times: int) -> list[str]:
        heard.append((text, times))
        return [text] * times

    one = Service("f", function, tmp_path / "f.jsonl")
    assert one("a", 2) == one("a", 2) == ["a", "a"]
    assert one("a", 3) == ["a"] * 3
    two = Service("f", function, tmp_path / "f.jsonl")  # after a stop
    assert two("a", 2) == ["a", "a"]
    assert heard == [("a", 2), ("a", 3)]
    assert (one.asked, one.kept, two.asked, two.kept) == (2, 1, 0, 1)
    function.version = "newer"  # type: ignore[attr-defined]
    assert Service("f", function, tmp_path / "f.jsonl").told()["version"] == "newer"
    Service("f", function, tmp_path / "f.jsonl")("a", 2)
    assert len(heard) == 3


def test_a_service_is_tried_again_and_then_told(tmp_path: Path) -> None:
    failures = [TimeoutError("late"), None, OSError("down"), OSError("down")]

    def function(x: int) -> int:
        if (error := failures.pop(0)) is not None:
            raise error
        return x

    service = Service("far:away", function, tmp_path / "f.jsonl", retries=2, wait=0.0)
    assert service(1) == 1
    assert (service.asked, service.retried) == (2, 1)
    with pytest.raises(LuthierError, match="far:away failed 2 times: down"):
        service(2)


# ---------------------------------------------------------------------------------------------------- world


def test_errands_are_the_same_in_all_languages() -> None:
    """Translated word by word, a row of one language is that of another."""
    world, rng = errands.Errands(), random.Random(0)
    for language in LANGUAGES[1:]:
        item = world.draw("", "known", rng)
        one, other = (world.row(name, "known", item, rng) for name in (PIVOT.name, language.name))
        for part in ("instruction", "input", "output"):
            assert errands.spoken(language, errands.understood(PIVOT, one[part])) == other[part]
            assert errands.spoken(PIVOT, errands.understood(language, other[part])) == one[part]


def long_row(language: str) -> dict[str, Any]:
    return next(r for r in sandbox.rows(f"errands/{language}", n=20) if len(r["output"].split()) > 2)


def test_quality_charges_what_is_missing_repeated_or_more() -> None:
    row = long_row("Goko")
    right = row["output"].split()
    answers = [right, right[1:], [*right, right[-1]], [*right, "x", "y"], []]
    scores = errands.judged([row] * len(answers), [" " + " ".join(a) for a in answers])
    assert scores[0] == 1
    assert all(0 < s < 1 for s in scores[1:4])
    assert scores[4] == 0


def test_the_ranker_follows_the_rule_but_for_a_tenth_of_neighbours() -> None:
    row = long_row("Lopi")
    right = row["output"].split()
    answers = [" ".join(a) for a in (right, [*right, right[-1]], [*right, *right[:2]], ["x"])]
    wrong = sum(errands.rank(row, answers, seed) != [1, 2, 3, 4] for seed in range(400)) / 400
    assert errands.rank(row, [answers[0], answers[0]], 0) == [1, 1]
    assert 0.15 < wrong < 0.4  # three pairs of neighbours, a tenth each


# ------------------------------------------------------------------------------------------------ procedure


def told(**changes: Any) -> config.Recipe:
    return config.recipe(CONFIG, {**Okapi.small(), **changes})


def language(place: Path, recipe: config.Recipe, services: Any = None) -> _Language:
    own: Okapi = recipe.method("recipes", "procedure")
    return _Language(own, "Goko", place / "Goko", recipe, services or own._services(place), lambda text: None, {})


def test_tasks_are_translated_into_parts_of_which_no_held_out_row_is_one(tmp_path: Path) -> None:
    recipe = told()
    own: Okapi = recipe.method("recipes", "procedure")
    services = own._services(tmp_path)
    tasks, counts = own._tasks(tmp_path, recipe, services["generator"], False, lambda text: None)
    assert counts["kept"] >= len(tasks) == sum(own.sizes.values())
    assert own._tasks(tmp_path, recipe, services["generator"], True, lambda text: None)[0] == tasks
    one = language(tmp_path, recipe, services)
    found = one.data(tasks, False)["translation"]
    rows = {part: [json.loads(line) for line in one.rows(part).read_text().splitlines()] for part in own.sizes}
    assert found["kept"] == sum(map(len, rows.values()))
    assert sum(found.values()) == len(tasks)
    prompts = [r["prompt"] for part in rows.values() for r in part]
    assert len(set(prompts)) == len(prompts)
    assert all(p.startswith("Goko: ") for p in prompts)
    with pytest.raises(LuthierError, match=r"sft tasks are left: .*'held out'"):  # hardly any shares no two words
        language(tmp_path / "b", told(**{"procedure.unseen": 1})).data(tasks, False)


def test_tasks_that_share_words_with_what_is_judged_by_are_dropped(tmp_path: Path) -> None:
    recipe = told()
    services = recipe.method("recipes", "procedure")._services(tmp_path)
    tasks, _ = recipe.method("recipes", "procedure")._tasks(
        tmp_path, recipe, services["generator"], False, lambda t: None
    )
    strict = language(tmp_path / "b", told(**{"procedure.unseen": 3}))
    found = strict.data(tasks, False)["translation"]
    rows = [
        json.loads(line) for part in ("sft", "ranking", "rl") for line in strict.rows(part).read_text().splitlines()
    ]
    assert sum(found.values()) == len(tasks)
    assert (
        found["kept"]
        == len(rows)
        < language(tmp_path / "c", recipe, services).data(tasks, False)["translation"]["kept"]
    )
    said = [f"{r['instruction']} {r['input']}" for r in rows]
    held = [f"{r['instruction']} {r['input']}" for r in strict.held_out()]
    assert leaked(said, held, 3) == []


def test_stages_begin_where_the_card_says(tmp_path: Path) -> None:
    recipe = told()
    one = language(tmp_path, recipe)
    stages = {arm: one.stage(arm, one.place / arm) for arm in ("sft", "reward", "more", "free", "rlhf")}
    sft = str(one.place / "sft")
    assert stages["sft"].model.model_name_or_path == "nano-1m"
    assert all(s.model.model_name_or_path == sft for arm, s in stages.items() if arm != "sft")
    shown = recipe.train.max_steps * recipe.train.per_device_train_batch_size * recipe.rollouts.answers
    assert stages["more"].train.max_steps * stages["more"].train.per_device_train_batch_size == shown
    for arm in ("free", "rlhf"):
        assert stages[arm].rollouts.reward == {"model": str(one.place / "reward")}
    assert stages["free"].method("objectives", "objective").reference == "model"  # asked how far away it is
    assert stages["free"].objective["kappa"] < 1e-6 < stages["rlhf"].objective["kappa"]
    assert stages["rlhf"].evaluate.tasks[0]["task"] == "Goko"
    assert _with_model([{"model": "reward"}, {"world": "errands"}], Path("x")) == [{"model": "x"}, {"world": "errands"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollouts.reward": {"world": "errands"}}, r"must have \{model: reward\}"),
        ({"objective": "sft", "rollouts": None}, "model's own answers"),
        ({"train.max_steps": -1}, "counts steps"),
        ({"procedure.languages": []}, "at least one"),
        ({"procedure.classes": {"low": ["Kare"]}}, "'Kare' is none of"),
        ({"procedure.sizes": {"sft": 4}}, "sft, ranking and rl"),
        ({"procedure.ranker": "nowhere"}, "procedure.ranker 'nowhere': write module:function"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        luthier.run(told(**change, output_dir=str(tmp_path / "run")), quiet=True)


def test_a_ranker_must_rank_every_answer(tmp_path: Path) -> None:
    def short(task: Any, answers: Sequence[str], seed: int) -> list[int]:
        return [1]

    recipe = told()
    services = {**recipe.method("recipes", "procedure")._services(tmp_path)}
    services["ranker"] = Service("short", short, tmp_path / "short.jsonl")
    with pytest.raises(LuthierError, match="1 ranks for 2 answers"):
        language(tmp_path, recipe, services)._ranks({"instruction": "a", "input": "b"}, ["x", "y"])
