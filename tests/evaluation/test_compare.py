"""Tasks, measuring, pairing on the same items, and scoring kept generations again."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import llama, tokenizer

import luthier.evaluation as evaluation
from luthier.core.config import ConfigError, read_yaml, recipe
from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.evaluation._compare import TASKS, Measured, fingerprint, measure, pair, rescore, samples, task, task_files
from luthier.evaluation._family import Answers
from luthier.report.evidence import changes

ROWS = [
    {"id": f"r{i}", "prompt": f"{i} the", "answer": "cat", "choices": ["cat", "dog"], "label": i % 2} for i in range(12)
]
TEXTS = [{"text": f"the cat {i} is here"} for i in range(6)]
SPECS: list[dict[str, Any]] = [
    {"name": "facts", "scorer": "exact_match", "data": ROWS, "max_new_tokens": 4, "title": "facts asked"},
    {"name": "pick", "scorer": "choice", "data": ROWS, "group": "retention"},
    {"name": "held", "scorer": "perplexity", "data": TEXTS, "group": "retention"},
    {"name": "sure", "scorer": "calibration", "data": ROWS, "group": "retention", "bins": 5, "limit": 10},
    {"name": "moved", "scorer": "drift", "data": TEXTS, "group": "drift", "keep": 32},
]


def subject(scale: float = 0.0) -> Subject:
    model = copy.deepcopy(llama())
    torch.manual_seed(2)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * scale)
    return Subject(model, tokenizer(), decoder=Greedy(), name="tuned" if scale else "base")


@pytest.fixture(scope="module")
def both() -> tuple[Measured, Measured]:
    base = measure(subject(), SPECS)
    return base, measure(subject(0.3), SPECS, base)


def test_results_have_the_reports_schema(both: tuple[Measured, Measured]) -> None:
    results = json.loads(json.dumps(pair(*both, resamples=200), allow_nan=False))
    assert set(results) == {"tasks", "base", "tuned", "paired", "calibration"}
    for name, about in results["tasks"].items():
        assert about["group"] in ("target", "retention", "drift")
        assert about["metric"] in results["base"][name]
        for side in ("base", "tuned"):
            for entry in results[side][name].values():
                assert {"value", "low", "high", "n", "higher_is_better"} <= set(entry)
                if entry["value"] is not None and entry["low"] is not None:
                    assert entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 1e-9
        for metric, entry in results["paired"][name].items():
            assert set(entry) == {"difference", "low", "high", "p", "test", "n", "verdict"}
            assert entry["verdict"] in ("better", "worse", "same")
            expected = results["tuned"][name][metric]["value"] - results["base"][name][metric]["value"]
            assert entry["difference"] == pytest.approx(expected)
    assert results["tasks"]["facts"]["title"] == "facts asked"
    assert "chance: 0.50" in results["tasks"]["pick"]["note"]
    assert results["base"]["sure"]["accuracy"]["n"] == 10
    assert results["paired"]["moved"]["kl"]["verdict"] == "worse"
    assert "Holm over 3" in results["paired"]["held"]["perplexity"]["test"]
    section = results["calibration"]["sure"]
    assert set(section) == {"base", "tuned"}
    assert set(section["base"]["bins"][0]) == {"low", "high", "confidence", "accuracy", "count"}
    assert {c.task for c in changes(results)} == {s["name"] for s in SPECS}, "the report reads it"


def test_same_model_is_the_same(both: tuple[Measured, Measured]) -> None:
    again = measure(subject(), SPECS, both[0])
    results = pair(both[0], again, resamples=200)
    verdicts = {e["verdict"] for metrics in results["paired"].values() for e in metrics.values()}
    assert verdicts == {"same"}
    assert "same answers to every item" in results["tasks"]["facts"]["note"]


def planted(accuracy: np.ndarray) -> Measured:
    one = task({"name": "t", "scorer": "exact_match", "data": ROWS})
    stats = dict.fromkeys(one.scorer.metrics, accuracy.astype(float))
    n = len(accuracy)
    return Measured("x", {"t": one}, {"t": Answers([str(i) for i in range(n)], stats, *([[""] * n] * 3))})


def test_planted_differences_are_found() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200) < 0.5
    better, same = base | (rng.random(200) < 0.3), base ^ (rng.random(200) < 0.1)
    found = {
        k: pair(planted(base), planted(v))["paired"]["t"]["exact_match"] for k, v in {"b": better, "s": same}.items()
    }
    assert found["b"]["verdict"] == "better"
    assert found["b"]["test"] == "McNemar, exact"
    assert found["b"]["low"] > 0
    assert found["s"]["verdict"] == "same"
    worse = pair(planted(better), planted(base))["paired"]["t"]["exact_match"]
    assert worse["verdict"] == "worse"


def test_items_are_matched_by_id() -> None:
    base, tuned = planted(np.arange(6) < 3), planted(np.arange(6) < 3)
    a = tuned.answers["t"]
    order = [5, 3, 1, 0, 2]
    tuned.answers["t"] = Answers(
        [a.ids[i] for i in order], {k: v[order] for k, v in a.stats.items()}, *([[""] * 5] * 3)
    )
    entry = pair(base, tuned, resamples=100)["paired"]["t"]["exact_match"]
    assert (entry["n"], entry["difference"]) == (5, 0)
    tuned.answers["t"].ids = list("vwxyz")
    with pytest.raises(LuthierError, match="different items"):
        pair(base, tuned)


def test_samples_side_by_side(both: tuple[Measured, Measured]) -> None:
    rows = samples(*both, limit=2)
    shown = [s["name"] for s in SPECS if s["scorer"] not in ("perplexity", "drift")]  # those have no answer to show
    assert [r["task"] for r in rows] == [name for name in shown for _ in range(2)]
    assert all(
        (r["base_score"] is None) == (r["task"] == "sure") for r in rows
    )  # a confidence is neither right nor wrong
    assert set(rows[0]) == {"task", "id", "prompt", "reference", "base", "tuned", "base_score", "tuned_score"}
    assert rows[0]["id"] == "r0"
    assert rows[0]["prompt"] == "0 the"


def test_rescore_without_generating(both: tuple[Measured, Measured], tmp_path: Path) -> None:
    rows = both[0].predictions()
    assert {r["task"] for r in rows} == {"facts"}
    assert {"prompt", "predict", "label"} <= set(rows[0])
    rows = [{**r, "predict": f"I say {r['label']}."} for r in rows]
    file = tmp_path / "generated_predictions.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = rescore(file, "exact_match", resamples=100)["facts"]
    assert found["exact_match"]["value"] == 0
    assert found["contains"]["value"] == 1
    assert rescore(file, {"name": "answer", "pattern": "say (\\w+)"})["facts"]["accuracy"]["value"] == 1
    with pytest.raises(LuthierError, match="needs the model"):
        rescore(file, "perplexity")


def test_saved_measurement_serves_as_base(both: tuple[Measured, Measured], tmp_path: Path) -> None:
    both[0].save(tmp_path / "base.json")
    base = Measured.load(tmp_path / "base.json", SPECS)
    assert pair(base, measure(subject(0.3), SPECS, base), resamples=100) == pair(*both, resamples=100)


def test_wrong_tasks() -> None:
    with pytest.raises(ConfigError, match="exact_match"):
        task({"name": "x", "scorer": "exact_macth"})
    with pytest.raises(ConfigError, match="max_new_tokens"):
        task({"name": "x", "scorer": "exact_match", "max_new_token": 3})
    with pytest.raises(LuthierError, match="no 'scorer'"):
        task({"name": "x"})
    with pytest.raises(LuthierError, match="group 'goal'"):
        task({"name": "x", "scorer": "choice", "group": "goal"})
    with pytest.raises(LuthierError, match="nearest: 'neutral'"):
        task("neutrall")
    with pytest.raises(LuthierError, match="no data"):
        measure(subject(), [{"name": "x", "scorer": "choice"}])
    with pytest.raises(LuthierError, match="two tasks"):
        measure(subject(), [SPECS[1], SPECS[1]])
    with pytest.raises(LuthierError, match="none of accuracy"):
        measure(subject(), [{**SPECS[1], "metric": "f1"}])
    with pytest.raises(LuthierError, match="row 0 has no choices"):
        measure(subject(), [{"name": "x", "scorer": "choice", "data": [{"prompt": "p", "answer": "a"}]}])


def test_task_files_of_package_and_user(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("scorer: exact_match\nversion: 3\nmax_new_tokens: 5\n")
    assert {"neutral", "held_out_text", "mine"} <= set(task_files([tmp_path]))
    found = task("mine", [tmp_path])
    assert (found.name, found.version, found.scorer.max_new_tokens) == ("mine", 3, 5)
    changed = task({"task": "mine", "name": "mine2", "max_new_tokens": 7}, [tmp_path])
    assert (changed.name, changed.scorer.max_new_tokens) == ("mine2", 7)
    assert task(str(tmp_path / "mine.yaml")).name == "mine"


def test_a_changed_prompt_needs_a_new_version() -> None:
    """versions.json records what each version of each task is; add a line to it together with a new `version`."""
    recorded = json.loads((TASKS / "versions.json").read_text())
    for name, path in task_files().items():
        told = read_yaml(path)
        assert recorded[name][str(told["version"])] == fingerprint(told), f"{name}: raise its version and record it"
    told = read_yaml(TASKS / "known_facts.yaml")
    assert fingerprint({**told, "title": "other words", "limit": 3}) == fingerprint(told)
    for change in ({"template": "Q: {question}"}, {"max_new_tokens": 9}, {"data": "other"}):
        assert fingerprint({**told, **change}) != fingerprint(told)


def test_task_files_have_rows() -> None:
    for name in task_files():
        one = task(name)
        assert one.title
        assert len(one.items()) >= 30, name


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, luthier.evaluation, luthier.decoding; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
    assert "measure" in evaluation.__all__


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs/evaluation").glob("*.yaml")), ids=lambda p: p.stem
)
def test_example_recipe_measures_by_its_own_scorer(path: Path) -> None:
    tasks = [task(t) for t in recipe(path).evaluate.tasks]
    assert {t.scorer.name for t in tasks} == {path.stem}
    if tasks[0].scorer.head:
        pytest.skip(f"reads a {tasks[0].scorer.head} head: run whole in tests/objectives")
    who = Subject(llama(), tokenizer(), decoder=Greedy())
    small = [replace(t, limit=4) for t in tasks]
    before = measure(who, small)
    assert pair(before, measure(who, small, before), resamples=20)["paired"]


def test_scores_that_are_all_0_or_1_are_a_proportion() -> None:
    one = task({"name": "t", "scorer": "skills", "n": 4})
    right = Measured("x", {"t": one}, {"t": Answers(list("abcd"), {"score": np.ones(4)}, *([[""] * 4] * 3))})
    entry = right.values()["t"]["score"]
    assert entry["low"] == pytest.approx(0.51, abs=0.01), "four of four is no proof of certainty"
    half = Measured(
        "x", {"t": one}, {"t": Answers(list("abcd"), {"score": np.array([0.5, 1, 0, 1])}, *([[""] * 4] * 3))}
    )
    assert pair(half, right)["paired"]["t"]["score"]["test"] == "sign-flip permutation"
    assert pair(right, right)["paired"]["t"]["score"]["test"] == "McNemar, exact"


def test_floor_of_an_extracted_answer() -> None:
    rows = [{"prompt": f"q{i}", "answer": "7" if i < 3 else "8"} for i in range(4)]
    found = measure(
        subject(), [{"name": "n", "scorer": "answer", "data": rows, "pattern": "so (\\d+)", "max_new_tokens": 2}]
    )
    assert found.answers["n"].floors == {"always '7'": 0.75}
