"""Alignment grid: equal trials, nested pairs, one template for all, ranks with ties, and what is shared between cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier import data
from luthier.core import config
from luthier.core.config import ConfigError
from luthier.core.method import LuthierError
from luthier.recipes._grid_table import Line, Score, Table, difference
from luthier.recipes.alignment_grid import AlignmentGrid

PAIRS = "sandbox:styles?task=prefer0&n=40"
STYLE = {
    "name": "style",
    "scorer": "skills",
    "world": "styles",
    "task": "style0",
    "part": "rare",
    "n": 6,
    "max_new_tokens": 16,
}
PROCEDURE: dict[str, Any] = {
    "name": "alignment_grid", "methods": ["dpo", "kto", "simpo"], "sizes": [8, 24], "rates": [1e-3], "strengths": [0.1],
    "options": {"simpo": [{"objective.beta": 2.0}]}, "groups": {"style": [STYLE]}, "max_new_tokens": 12, "stop": ["\n"],
    "starts": {"base": {}, "sft": {"data": "sandbox:styles?task=style0&n=16", "train": {"max_steps": 3}}},
    "seeds": 2, "fresh": False, "resamples": 200,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "model": "nano-1m", "data": {"train": PAIRS, "eval": "sandbox:styles?task=prefer0&split=test&n=12"},
    "tuner": {"name": "lora", "r": 2}, "procedure": PROCEDURE, "evaluate": {"drift": False},
    "train": {
        "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "torch_threads": 1,
        "save_strategy": "no",
    },
}  # fmt: skip


def recipe(**changes: Any) -> config.Recipe:
    return config.recipe(RECIPE, {k.replace("__", "."): v for k, v in changes.items()})


# ----------------------------------------------------------------------------------------------------- before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strengths": (0.1, 0.2)}, "same number of trials"),
        ({"sizes": (24, 8)}, "the smallest first"),
        ({"methods": ("dpo", "rrhf", "sft")}, "'sft' does not learn from pairs"),
        ({"starts": {"a": {"evaluate": {}}}}, "evaluate is none of"),
        ({"starts": {"a": {"train": {"max_steps": 1}}}}, "data is missing"),
        ({"starts": {"a": {"data": PAIRS, "tuner": "lora"}}}, "is an adapter"),
    ],
)
def test_what_does_not_fit_is_told_first(changes: dict[str, Any], said: str) -> None:
    one = AlignmentGrid(**{"methods": ("dpo", "simpo"), "options": {"simpo": [{}]}, "strengths": (0.1,), **changes})
    with pytest.raises(ConfigError, match=said):
        one.check(recipe())


def test_pairs_to_choose_by_are_other_pairs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name both"):
        AlignmentGrid().check(recipe(data__eval=None))
    with pytest.raises(LuthierError, match=r"data.eval: .* must be other pairs"):
        AlignmentGrid(sizes=(8,)).shared(recipe(data__eval=PAIRS), tmp_path)
    with pytest.raises(ConfigError, match=r"50 pairs are asked for, data.train has 40"):
        AlignmentGrid(sizes=(50,)).shared(recipe(), tmp_path)


def test_every_method_gets_as_many_trials() -> None:
    one = AlignmentGrid(rates=(1e-5, 1e-4), strengths=(0.1, 0.3), options={"orpo": [{"objective.weight": 1.0}, {}]})
    assert [len(one.trials(m)) for m in ("dpo", "ipo", "kto", "cpo", "orpo")] == [4] * 5
    assert one.trials("dpo")[1] == {"train.learning_rate": 1e-5, "objective.beta": 0.3}


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(file)


def test_subsets_are_random_and_nested(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(50)]
    file = written(tmp_path / "pairs.jsonl", rows)
    drawn = {n: data.read(file, limit=n, shuffle=3).rows for n in (5, 20, 50)}
    assert drawn[20][:5] == drawn[5] and drawn[50][:20] == drawn[20]
    assert drawn[50] != rows and sorted(drawn[50], key=lambda r: int(r["prompt"])) == rows
    assert data.read(file, limit=5, shuffle=4).rows != drawn[5]


def test_pairs_taken_apart_and_put_together_are_the_same_pairs(tmp_path: Path) -> None:
    """Rows of prompt, completion and label from pairs, and pairs from these, lose nothing."""
    pairs = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in data.read(PAIRS).rows]
    apart = [
        {"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in pairs for k in ("chosen", "rejected")
    ]  # fmt: skip
    again = [
        {"prompt": w["prompt"], "chosen": w["completion"], "rejected": x["completion"]}
        for w, x in zip(apart[::2], apart[1::2], strict=True)
    ]
    tokenizer = luthier.load("nano-1m").tokenizer
    made = {
        k: data.prepare(written(tmp_path / f"{k}.jsonl", v), tokenizer=tokenizer).examples
        for k, v in (("pairs", pairs), ("apart", apart))
    }
    assert again == pairs
    assert [e.answers for e in made["pairs"]] == [
        [a.answers[0], b.answers[0]] for a, b in zip(made["apart"][::2], made["apart"][1::2], strict=True)
    ]
    assert [e.scores for e in made["apart"]] == [[1.0], [0.0]] * len(pairs)


# ------------------------------------------------------------------------------------------------------ table


def scored(method: str, items: list[float], size: int = 8) -> Line:
    """A line whose draws are means over resampled items."""
    x = np.array(items)
    draws = x[np.random.default_rng(0).integers(0, len(x), (500, len(x)))].mean(1)
    return Line("base", method, size, 1, {"g": Score(float(x.mean()), draws)})


def test_items_are_paired_and_ranks_tie() -> None:
    """Items differ far more than methods: a small but constant gain is clear, one that comes and goes is not."""
    hard = np.random.default_rng(1).normal(size=40)
    noise = np.random.default_rng(2).normal(size=40)
    lines = [
        scored("a", list(hard + 0.3)),
        scored("b", list(hard)),
        scored("c", list(hard + 0.3 + noise - noise.mean())),
    ]
    d, low, high = difference(lines[0], lines[1], "g")
    assert d == pytest.approx(0.3) and low == pytest.approx(0.3) and high == pytest.approx(0.3)
    found = Table(lines, {}, ["g"])
    assert found.ranks()[0]["ranks"] == {"a": 1, "b": 3, "c": 1}, "two are better than b"
    verdicts = {(x["a"], x["b"]): x["verdict"] for x in found.differences()}
    assert verdicts["a", "b"] == "better" and verdicts["a", "c"] == "no difference"
    assert found.findings() == ["base, g: no difference between the best, a, c"]


def test_equal_methods_are_told_to_be_equal() -> None:
    lines = [scored(m, [0.0, 1.0, 1.0, 0.0, 1.0]) for m in ("a", "b")]
    found = Table(lines, {}, ["g"])
    assert found.ranks()[0]["ranks"] == {"a": 1, "b": 1}
    assert found.findings() == ["base, g: no difference between the methods"]


# -------------------------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        return luthier.run(RECIPE, overrides={"output_dir": str(tmp_path_factory.mktemp("grid") / "out")}, quiet=True)


def test_the_table_is_full(done: Any) -> None:
    told = json.loads((done.folder / "compare.json").read_text())
    lines = told["grid"]["lines"]
    assert len(told["cells"]) == 2 * 3 * 2 * 2 and {c["status"] for c in told["cells"]} == {"done"}
    assert [(x["start"], x["method"], x["size"]) for x in lines] == [
        (s, m, n) for s in ("base", "sft") for m in ("dpo", "kto", "simpo") for n in (8, 24)
    ]
    for line in lines:
        assert line["seeds"] == 2 and not line["why"]
        for group in ("style", "held-out pairs"):
            score = line["groups"][group]
            assert score["low"] <= score["value"] <= score["high"]
        assert {"logp_chosen", "logp_rejected", "ended", "length", "steps", "epochs", "last_loss"} <= line[
            "figures"
        ].keys()
    cells = [
        c["results"]["tuned"]["style"]["score"]["value"] for c in done.told["cells"] if c["method"] == "sft: kto-24"
    ]
    line = next(x for x in lines if (x["start"], x["method"], x["size"]) == ("sft", "kto", 24))
    assert line["groups"]["style"]["value"] == pytest.approx(np.mean(cells))
    assert len((done.folder / "table.csv").read_text().splitlines()) == 13
    assert done.report.read_text().count("<svg") >= 12, "a curve for each method, start and group"


def test_answers_are_trained_in_equal_numbers(done: Any) -> None:
    """A step of a paired and of an unpaired method has the same pairs, in the same order, and both sides are logged."""
    logs = {}
    for method in ("dpo", "kto", "simpo"):
        run = json.loads((done.folder / "base" / f"{method}-24-seed0" / "run.json").read_text())
        told = [
            json.loads(x)
            for x in (done.folder / "base" / f"{method}-24-seed0" / "metrics.jsonl").read_text().splitlines()
        ]
        logs[method] = (run["data"][0]["sha256"], run["recipe"]["train"]["per_device_train_batch_size"])
        assert {"logps/chosen", "logps/rejected"} <= told[0].keys()
        first = {k: told[0][k] for k in ("logps/chosen", "logps/rejected")}
        logs[method] += tuple(round(v, 3) for v in first.values())
    assert len(set(logs.values())) == 1, "the first step, before anything moved, saw the same answers"


def test_the_starts_are_what_they_say(done: Any) -> None:
    base, sft = (
        json.loads((done.folder / s / "dpo-8-seed0" / "run.json").read_text())["base"] for s in ("base", "sft")
    )
    assert base["name"] == "nano-1m" and sft["name"].endswith("starts/sft") and base["sha256"] != sft["sha256"]
    zero = json.loads((done.folder / "compare.json").read_text())["grid"]["zero"]
    assert zero["base"]["held-out pairs"] == zero["sft"]["held-out pairs"] == 0.5, "a start has no reward over itself"


def test_resuming_trains_nothing_that_is_done(done: Any) -> None:
    place = done.folder / "sft" / "kto-24-seed1" / "results.json"
    before, told = place.stat().st_mtime_ns, json.loads((done.folder / "compare.json").read_text())["grid"]
    luthier.run(RECIPE, overrides={"output_dir": str(done.folder)}, resume=True, quiet=True)
    assert place.stat().st_mtime_ns == before
    assert json.loads((done.folder / "compare.json").read_text())["grid"] == told


def test_one_template_for_all_cells(tmp_path: Path) -> None:
    """A start whose pairs would become other tokens is refused: a template in some cells only would be compared otherwise."""
    loaded = luthier.load("nano-1m")
    rows = [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            **{k: [{"role": "assistant", "content": r[k]}] for k in ("chosen", "rejected")},
        }
        for r in data.read(PAIRS).rows
    ]
    pairs, held = written(tmp_path / "pairs.jsonl", rows[:30]), written(tmp_path / "held.jsonl", rows[30:])
    other = tmp_path / "other"
    loaded.model.save_pretrained(other)
    loaded.tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    loaded.tokenizer.save_pretrained(other)
    told = recipe(
        data={"train": pairs, "eval": held}, output_dir=str(tmp_path / "out"),
        procedure__methods=["dpo"], procedure__sizes=[8], procedure__starts={"other": {"model": str(other)}},
    )  # fmt: skip
    with pytest.raises(LuthierError, match=r"starts.other: pairs become other tokens"):
        luthier.run(told, quiet=True)
