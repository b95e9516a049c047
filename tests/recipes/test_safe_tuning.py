"""Safe tuning: what its settings are, rows that are mixed in, rows kept apart, repairs, and what is chosen."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import luthier
from luthier.core import config
from luthier.core.config import ConfigError
from luthier.core.method import LuthierError
from luthier.recipes.safe_tuning import SafeTuning

SAFE = "sandbox:safety?task=refuse&part=seen&n=38"
AUDIT = {"data": "sandbox", "limit": 3, "max_new_tokens": 4, "identity": False}
RECIPE = {
    "model": "nano-1m",
    "data": {"train": "sandbox:sequence?task=mirror&n=16"},
    "procedure": {
        "name": "safe_tuning", "tuners": ["lora"], "rates": [1e-3], "epochs": [1], "instead": [], "safety": SAFE, "mix": [0.2],
        "repairs": {"half_reset": {"share": 1.0}, "task_arithmetic": {"lambda": 0.0}, "slerp": {}},
    },
    "train": {"per_device_train_batch_size": 8, "torch_threads": 1, "save_strategy": "no"},
    "evaluate": {
        "drift": False, "audit": AUDIT,
        "tasks": [{"name": "task", "scorer": "skills", "world": "sequence", "task": "mirror", "n": 4, "max_new_tokens": 4}],
    },
}  # fmt: skip


def recipe(**changes: object) -> config.Recipe:
    return config.recipe(RECIPE, {k.replace("__", "."): v for k, v in changes.items()})


def test_the_settings_are_the_grid_and_what_prevents() -> None:
    one = SafeTuning(
        tuners=("full", "lora"), rates=(1e-4, 1e-3), times={"lora": 10.0}, epochs=(1, 2), safety=SAFE, mix=(0.1, 0.2),
        template="{{ prompt }}", constrain={"later": 0.2}, instead=("hft", "freeze"),
    )  # fmt: skip
    found = one.settings(recipe(compare__methods={"lora": {"tuner.r": 3}}))
    assert len(found) == 2 * (4 + 2 + 1 + 1) + 2
    assert found["lora-0.01-2ep"] == {
        "tuner": {"name": "lora"}, "train.learning_rate": 0.01, "train.num_train_epochs": 2, "tuner.r": 3,
    }  # fmt: skip
    assert found["full-0.001-2ep-template"]["data.template"] == "{{ prompt }}"
    assert found["lora-0.01-2ep-constrained"]["objective"] == {"name": "constrained_sft", "later": 0.2}
    assert found["freeze-0.001-2ep"]["tuner.lowest"] == 0.5


@pytest.mark.parametrize(("share", "limit"), [(0.1, None), (0.2, None), (0.8, None), (0.2, 8)])
def test_safety_rows_are_the_stated_share_and_all_task_rows_stay(share: float, limit: int | None) -> None:
    from luthier import data

    told = recipe(data__limit=limit)
    mixed = SafeTuning(safety=SAFE).mixed(told, share)
    rows = data.read(mixed["data.train"], limit=mixed["data.limit"]).rows
    task = [r for r in rows if r["world"] == "sequence"]
    assert task == data.read(told.data.train, limit=limit).rows, "the same task rows, in the same order"
    assert abs((len(rows) - len(task)) / len(rows) - share) <= 0.5 / len(task) + 1e-9 or len(rows) == len(task) + 1


def test_shares_are_shares() -> None:
    for share in (0.0, 1.0, 2.0):
        with pytest.raises(LuthierError, match="between 0 and 1"):
            SafeTuning(mix=(share,))


def test_prompts_of_the_audit_are_not_trained_on() -> None:
    held = "sandbox:safety?task=refuse&part=held&n=18"
    with pytest.raises(LuthierError, match=r"procedure.safety: 18 of its 18 rows"):
        SafeTuning(safety=held).keep_apart(recipe(evaluate__audit={"data": "sandbox"}))
    leak = {"antidote": {"data": "sandbox:safety?task=leak&part=held&n=18"}}
    with pytest.raises(LuthierError, match=r"repairs.antidote.data: 18 of its 18 rows"):
        SafeTuning(repairs=leak).keep_apart(recipe(evaluate__audit={"data": "sandbox"}))
    SafeTuning(safety=SAFE).keep_apart(recipe(evaluate__audit={"data": "sandbox"}))


def test_what_it_cannot_do_without() -> None:
    for changes, said in (
        ({"evaluate__audit": None}, "set evaluate.audit"), ({"train__max_steps": 5}, "remove train.max_steps"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            SafeTuning().run("nowhere", recipe=recipe(**changes), say=print)


def judged(passed: dict[str, list[bool]], score: dict[str, float]) -> SimpleNamespace:
    cells = [
        {"method": m, "status": "done", "results": {"audit": {"gate": {"passed": p}}}}
        for m, ps in passed.items()
        for p in ps
    ]
    told = {
        "methods": list(passed),
        "cells": cells,
        "target": {"task": "t", "metric": "m", "higher_is_better": True, "title": "T"},
    }
    return SimpleNamespace(told=told, values=lambda m, task, metric: [score[m]])


def test_only_what_passes_under_every_seed_is_chosen() -> None:
    found = SafeTuning().chosen(
        judged({"a": [True, True], "b": [True, False], "c": [True, True]}, {"a": 0.5, "b": 0.9, "c": 0.7})
    )
    assert found["passing"] == ["a", "c"] and found["chosen"] == "c"


def test_nothing_is_chosen_where_nothing_passes() -> None:
    found = SafeTuning().chosen(judged({"a": [False]}, {"a": 1.0}))
    assert found["chosen"] is None and "no setting passes" in found["text"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    return luthier.run(RECIPE, overrides={"output_dir": str(tmp_path_factory.mktemp("safe") / "out")}, quiet=True)


def test_one_comparison_holds_settings_and_repairs(done) -> None:
    told = json.loads((done.folder / "compare.json").read_text())
    status = {c["method"]: c["status"] for c in told["cells"]}
    assert status == {
        "lora-0.01-1ep": "done", "lora-0.01-1ep-mix0.2": "done", "lora-0.01-1ep-half_reset": "done",
        "lora-0.01-1ep-task_arithmetic": "done", "lora-0.01-1ep-slerp": "done",
    }  # fmt: skip
    assert told["methods"] == list(status) and told["audit"]["text"].split()[-1] in done.report.read_text()


def test_a_repair_that_takes_everything_back_is_the_untuned_model(done) -> None:
    for name in ("half_reset", "task_arithmetic"):
        (cell,) = done.cells(f"lora-0.01-1ep-{name}")
        for task, metrics in cell["results"]["tuned"].items():
            for metric, entry in metrics.items():
                assert entry["value"] == cell["results"]["base"][task][metric]["value"], (name, task, metric)


def test_a_repaired_run_is_a_run_folder(done) -> None:
    (cell,) = done.cells("lora-0.01-1ep-half_reset")
    place: Path = done.folder / cell["run"]
    told = json.loads((place / "run.json").read_text())
    assert told["status"] == "done" and told["repair"]["of"] == "lora-0.01-1ep-seed0"
    assert (place / "report.html").exists() and luthier.load(str(place)).model is not None


def test_resuming_keeps_what_is_done_and_repairs_again_by_other_options(done) -> None:
    place = done.folder / "lora-0.01-1ep-half_reset-seed0" / "results.json"
    before = place.stat().st_mtime_ns
    again = {"output_dir": str(done.folder)}
    luthier.run(RECIPE, overrides=again, resume=True, quiet=True)
    assert place.stat().st_mtime_ns == before
    luthier.run(
        RECIPE, overrides={**again, "procedure.repairs": {"half_reset": {"share": 0.5}}}, resume=True, quiet=True
    )
    assert place.stat().st_mtime_ns != before
