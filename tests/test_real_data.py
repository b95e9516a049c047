"""The records of results/real are whole and say what their numbers say; their recipes run, at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "real"


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("real_data", ROOT / "scripts" / "real_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


real_data = _script()
NAMES = list(real_data.EXPERIMENTS)
ENV = real_data.environment()
DATA = Path(os.environ.get("LUTHIER_DATA") or "/nowhere")
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="LUTHIER_DATA is not set: the data sets are not at hand")


@pytest.fixture(params=NAMES)
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _record(request.param)


def _record(name: str) -> dict[str, Any]:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{name} is not recorded yet: scripts/real_data.py {name}")
    return json.loads(file.read_text())


def _entries(record: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(m, side) for m in record["measured"] for side in [m["base"], *m["methods"].values()]]


# ------------------------------------------------------------------------------------------------------- records


def test_manifest_is_complete(record: dict[str, Any]) -> None:
    manifest = record["manifest"]
    assert {"torch", "transformers", "peft", "numpy", "python"} <= set(manifest["versions"])
    assert manifest["device"]["name"]
    assert manifest["device"]["threads"] >= 1
    assert re.fullmatch(r"[0-9a-f]{40}", manifest["git"]["commit"])
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["base"]["sha256"])
    assert manifest["files"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", h) for h in manifest["files"].values())
    assert manifest["seconds"] > 0
    assert manifest["started"] < manifest["finished"]
    assert record["data"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", d["sha256"]) for d in record["data"])


def test_spread_is_that_of_the_values(record: dict[str, Any]) -> None:
    for measured, side in _entries(record):
        values = [v["value"] for v in side["values"]]
        assert [v["seed"] for v in side["values"]] == record["seeds"]
        assert side["mean"] == pytest.approx(statistics.fmean(values))
        expected = statistics.stdev(values) if len(values) > 1 else None
        assert side["sd"] == (None if expected is None else pytest.approx(expected))
        inside = all(v["low"] - 1e-12 <= v["value"] <= v["high"] + 1e-12 for v in side["values"])
        assert inside, measured["metric"]


def test_accuracies_have_wilson_intervals(record: dict[str, Any]) -> None:
    z = statistics.NormalDist().inv_cdf(0.975)
    for measured, side in _entries(record):
        if measured["metric"] not in ("accuracy", "answered"):
            continue
        n = measured["items"]
        for v in side["values"]:
            p = v["value"]
            middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
            assert (v["low"], v["high"]) == pytest.approx(expected, abs=1e-9)
            assert p * n == pytest.approx(round(p * n))


def test_summary_says_the_numbers(record: dict[str, Any]) -> None:
    assert record["summary"] == real_data.EXPERIMENTS[record["experiment"]].say(record)


def test_recipe_is_the_one_that_was_run(record: dict[str, Any]) -> None:
    path = ROOT / record["recipe"]["file"]
    assert real_data.sha256(path) == record["recipe"]["sha256"], "the recipe changed: run scripts/real_data.py --again"
    told = yaml.safe_load(path.read_text())
    methods = told.get("compare", {}).get("methods") or {told["tuner"]: {}}
    assert set(methods) == set(record["recipe"]["methods"]) == set(record["costs"]) == set(record["losses"])
    for name, changes in methods.items():
        rate = changes.get("train.learning_rate", told["train"].get("learning_rate"))
        assert record["recipe"]["methods"][name]["learning_rate"] == pytest.approx(float(rate))


def test_no_place_of_this_machine(record: dict[str, Any]) -> None:
    assert not re.search(r'"(/work|/home|/root|/tmp|/usr)', json.dumps(record))


def test_losses_fall(record: dict[str, Any]) -> None:
    many = len(record["losses"]) >= 5
    slack = 0.02 if many else 0.0  # one short epoch hardly moves a prompt of twenty rows
    fell = [[loss["last"] < loss["first"] + slack for loss in losses] for losses in record["losses"].values()]
    assert all(map(any, fell))
    # single batches at both ends: one seed may begin with an easy one, and a rate of a short trial may break down under one
    means = [
        [statistics.fmean(loss[end] for loss in losses) for end in ("first", "last")]
        for losses in record["losses"].values()
    ]
    assert many or all(last < first for first, last in means)
    assert not many or sum(map(sum, fell)) >= 0.95 * sum(map(len, fell))


def test_rates_are_those_of_the_pilots() -> None:
    pilots = json.loads((RESULTS / "pilots.json").read_text())
    for name, experiment in real_data.EXPERIMENTS.items():
        told = yaml.safe_load(experiment.recipe.read_text())
        for method, rates in experiment.pilots.items():
            tried = pilots[name]["methods"][method]
            assert set(tried["held_out_loss"]) == {str(r) for r in rates}
            assert min(tried["held_out_loss"], key=tried["held_out_loss"].get) == str(tried["best"])
            assert float(told["compare"]["methods"][method]["train.learning_rate"]) == tried["best"]


def test_every_recipe_is_an_experiment() -> None:
    assert {p.stem for p in real_data.RECIPES.glob("*.yaml")} == set(NAMES)
    assert {p.stem for p in RESULTS.glob("*.json")} <= {*NAMES, "pilots"}


# -------------------------------------------------------------------------------------------------------- claims


def _told(name: str, task: str, metric: str) -> dict[str, Any]:
    record = _record(name)
    return next(m for m in record["measured"] if (m["task"], m["metric"]) == (task, metric))


def test_the_encoder_reaches_its_goal() -> None:
    told = _told("minilm-sst2-full", "sst2_dev", "accuracy")
    assert told["items"] == 872
    seeds = [v["value"] for v in told["methods"]["full_adversarial"]["values"]]
    assert len(seeds) == 3 and sum(seeds) / 3 >= 0.885


def test_two_thousand_rows_are_enough_for_every_method() -> None:
    small = _told("minilm-sst2-compare", "sst2_dev", "accuracy")
    assert set(small["methods"]) == {"full", "lora", "bottleneck"}
    assert all(len(m["values"]) == 3 and m["mean"] > 0.8 for m in small["methods"].values())


def test_tuners_are_told_apart_by_what_they_train() -> None:
    """Whoever trains the same numbers by another rule (llrd, dora, ...) is a row of its own: no alias of another row."""
    record = _record("minilm-sst2-tuners")
    told = _told("minilm-sst2-tuners", "sst2_dev", "accuracy")["methods"]
    assert len(told) == len(record["costs"]) >= 15
    losses = [tuple((one["first"], one["last"]) for one in record["losses"][m]) for m in told]
    assert len(set(losses)) == len(losses)
    assert all(
        c["trainable_parameters"] <= record["costs"]["full"]["trainable_parameters"] for c in record["costs"].values()
    )
    assert told["full"]["mean"] > 0.75


def test_the_stories_model_learns_to_read() -> None:
    for metric in ("perplexity", "bits_per_character"):
        told = _told("stories-wikitext2", "wikitext2_test", metric)
        for side in told["methods"].values():
            assert all(v["verdict"] == "better" for v in side["values"])
            assert side["mean"] < told["base"]["mean"]


def test_gsm8k_went_through_whole() -> None:
    record = _record("gsm8k-sft")
    rows = record["data"][0]
    assert (rows["type"], rows["rows"] + rows["rejected"]) == ("chat", 7473)
    assert 0 < rows["answers_cut"] <= rows["truncated"] < rows["rows"]
    assert 0 < rows["trained_tokens"] < rows["tokens"]
    told = _told("gsm8k-sft", "gsm8k_answers", "perplexity")
    assert all(side["mean"] < told["base"]["mean"] for side in told["methods"].values())


# --------------------------------------------------------------------------------------------------- tiny runs


@with_data
def test_gsm8k_trains_the_answer_and_nothing_else() -> None:
    from luthier.core.llama2c import load_tokenizer
    from luthier.data import prepare

    told = yaml.safe_load((real_data.RECIPES / "gsm8k-sft.yaml").read_text())["data"]
    tokenizer = load_tokenizer(DATA / "models" / "stories260k" / "tokenizer.bin")
    entry = {**told["train"][0], "path": f"{DATA}/gsm8k/train.jsonl", "n": 300}
    made = prepare([entry], tokenizer=tokenizer, options={"max_length": told["max_length"]})
    report = made.report
    assert report.rows_found == 7473
    assert report.examples + len(report.rejected) == 300
    rows = {origin: line for line, origin in _lines(DATA / "gsm8k" / "train.jsonl")}
    whole = 0
    for example, origin in zip(made.examples, made.origins, strict=True):
        row = json.loads(rows[origin])
        trained = tokenizer.decode([t for t, c in zip(example.ids, example.counts, strict=True) if c])
        prompt = tokenizer.decode([t for t, c in zip(example.ids, example.counts, strict=True) if not c])
        assert prompt.removeprefix("<s>").strip() == row["question"].strip()
        assert (row["answer"] + "</s>").startswith(trained)
        whole += trained == row["answer"] + "</s>"
    assert whole == report.examples - report.answers_cut


def _lines(path: Path) -> list[tuple[str, str]]:
    return [(line, f"{path}:{i}") for i, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if line]


@with_data
def test_a_quarter_of_the_labels_is_turned_round_and_nothing_else(tmp_path: Path) -> None:
    real_data.flipped(DATA, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    given = [line.split("\t") for line in (DATA / "sst2" / "train.tsv").read_text().splitlines()]
    assert [(r["text"], r["true"]) for r in rows] == [(text, int(label)) for text, label in given]
    assert sum(r["label"] != r["true"] for r in rows) == round(len(rows) / 4)
    assert {r["label"] for r in rows} == {0, 1}


@with_data
def test_cranfield_is_written_whole_and_test_queries_train_nothing(tmp_path: Path) -> None:
    real_data.cranfield(DATA, tmp_path)
    corpus, queries, rows = (
        [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
        for n in ("corpus", "queries", "train")
    )
    texts, asked = {d["_id"]: d["text"] for d in corpus}, {q["_id"]: q["query"] for q in queries}
    assert (len(texts), len(asked)) == (1398, 225)  # documents 471 and 995 are empty
    assert texts["1"].startswith("experimental investigation of the aerodynamics of a wing in a slipstream . an exp")
    assert asked["3"].startswith("what problems of heat conduction")
    qrels = [line.split("\t") for line in (tmp_path / "qrels.tsv").read_text().splitlines()[1:]]
    assert all(int(q) % 3 == 0 and d in texts and 1 <= int(g) <= 4 for q, d, g in qrels)
    assert ("3", "5") in {(q, d) for q, d, _ in qrels}
    trained = {r["query_id"] for r in rows}
    assert not trained & {q for q, _, _ in qrels}
    assert not {r["query"] for r in rows} & {asked[q] for q, _, _ in qrels}
    assert all(r["query"] == asked[r["query_id"]] and r["positive"] in {texts[d] for d in r["relevant"]} for r in rows)


@with_data
def test_quixbugs_rows_are_what_they_say() -> None:
    """Held-out repairs pass their tests, faulty programs do not; every reason names what changes."""
    from luthier.evaluation._runner import RunLimits, run

    folder = Path(ENV["LUTHIER_QUIXBUGS"])
    rows = {
        part: [json.loads(s) for s in (folder / f"{part}.jsonl").read_text().splitlines()] for part in ("train", "test")
    }
    assert {k: len(v) for k, v in rows.items()} == {"train": 23, "test": 8}
    for row in rows["test"]:
        assert run(row["repair"], row["tests"], RunLimits(cpu_seconds=3)).ok
        assert not run(row["prompt"], row["tests"], RunLimits(cpu_seconds=1)).ok
    for row in rows["train"] + rows["test"]:
        told = row["guided_repair"].removeprefix(row["repair"])
        assert re.match(r"# because .*`.+`", told)


TINY = {
    "data.limit": 24, "max_steps": 2, "logging_steps": 1, "evaluate.limit": 4,
    "per_device_train_batch_size": 4, "torch_threads": 1, "data.max_length": 64,
}  # fmt: skip


@with_data
@pytest.mark.parametrize("name", NAMES)
def test_recipes_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier

    experiment = real_data.EXPERIMENTS[name]
    if reason := real_data.missing(experiment, ENV):
        pytest.skip(reason)
    for place in real_data.PLACES:
        monkeypatch.setenv(place, ENV.get(place, ""))
    env, folder, tiny = dict(ENV), tmp_path / "out", {**TINY, **experiment.tiny}
    if experiment.makes is not None:
        place, write = experiment.makes
        write(DATA, tmp_path / "made", documents=60)
        monkeypatch.setenv(place, str(tmp_path / "made"))
        env[place] = str(tmp_path / "made")
    if experiment.verb == "run":
        done = luthier.run(experiment.recipe, overrides={**tiny, "output_dir": str(folder)}, quiet=True)
        assert done.report.exists()
    else:
        methods = list(yaml.safe_load(experiment.recipe.read_text())["compare"]["methods"])
        few = methods[:: max(1, len(methods) // 3)]  # of many, some of each kind: every tuner has a battery of its own
        done = luthier.compare(experiment.recipe, methods=few, overrides=tiny, seeds=1, output_dir=folder, quiet=True)
        assert [c["status"] for c in done.told["cells"]] == ["done"] * len(done.told["methods"])
    made = real_data.record(experiment, folder, env)
    assert made["summary"]
    assert [(m["task"], m["metric"]) for m in made["measured"]] == list(experiment.measures)
    assert str(DATA) not in json.dumps(made)
