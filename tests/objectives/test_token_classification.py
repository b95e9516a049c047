"""Classes of tokens through whole runs: encoders and decoders, adapters and all weights, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import luthier
from luthier.core.method import LuthierError, Refusal
from luthier.verbs.load import load

TAGS = "sandbox:labels?task=roles"
STEPS = "sandbox:arithmetic?task=judged"


def recipe(folder: Path, model: str, data: str, tuner: str, scorer: str, **train: object) -> dict:
    return {
        "model": model, "data": {"train": f"{data}&n=200"}, "tuner": tuner, "objective": "token_classification",
        "train": {
            "max_steps": 24, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "torch_threads": 1, "logging_steps": 4,
            **train,
        },
        "evaluate": {"tasks": [{"name": "held", "scorer": scorer, "data": f"{data}&split=test&n=30"}]},
        "output_dir": str(folder),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "data", "tuner", "scorer"),
    [
        ("nano-encoder", TAGS, "full", "tagging"),
        ("nano-encoder", TAGS, "prompt_tuning", "tagging"),
        ("nano-encoder", TAGS, "bottleneck", "tagging"),
        ("nano-1m", TAGS, "lora", "tagging"),
        ("nano-1m", TAGS, "prefix", "tagging"),
        ("nano-1m", STEPS, "lora", "step_errors"),
    ],
)
def test_runs_learn_and_load_again(tmp_path: Path, model: str, data: str, tuner: str, scorer: str) -> None:
    done = luthier.run(recipe(tmp_path / "run", model, data, tuner, scorer), quiet=True)
    losses = [r["loss"] for r in done.fitted.log if "loss" in r]
    assert data == STEPS or losses[-1] < losses[0]  # steps are mostly right: a few batches tell nothing
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {"f1", "accuracy"} <= results["tuned"]["held"].keys()

    again = load(str(tmp_path / "run"))
    assert again.task == "token_classification"
    task = {"name": "held", "scorer": scorer, "data": f"{data}&split=test&n=30"}
    told = luthier.evaluate(str(tmp_path / "run"), tasks=[task])
    assert _values(told)["held"]["accuracy"] == pytest.approx(results["tuned"]["held"]["accuracy"]["value"])


def _values(told: object) -> dict:
    found = told.results if hasattr(told, "results") else told  # type: ignore[attr-defined]
    found = found.get("tuned", found.get("model", found))
    return {t: {m: v["value"] for m, v in ms.items()} for t, ms in found.items()}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="takes an encoder or a decoder"):
        luthier.run(recipe(tmp_path / "a", "nano-seq2seq", TAGS, "full", "tagging"), quiet=True)
    with pytest.raises(LuthierError, match="takes rows of type tagged, stepwise; these are 'labelled'"):
        luthier.run(
            recipe(tmp_path / "b", "nano-encoder", "sandbox:labels?task=topic_label", "full", "tagging"), quiet=True
        )
    with pytest.raises(Refusal, match="tagging reads a token_classification head, this subject is a causal_lm"):
        luthier.evaluate("nano-1m", tasks=[{"name": "t", "scorer": "tagging", "data": f"{TAGS}&n=5"}])
