"""What an evaluation tells of held-out rows, and the model that is chosen by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.method import LuthierError


@pytest.fixture
def topics(tmp_path: Path) -> dict[str, Any]:
    """Held-out rows are those that the run is judged by at its end."""
    held_out = "sandbox:labels?task=topic_label&split=test&n=60"
    return {
        "model": "nano-encoder", "data": {"train": "sandbox:labels?task=topic_label&n=80", "eval": held_out},
        "tuner": "full", "objective": "classification", "output_dir": str(tmp_path / "run"),
        "train": {
            "num_train_epochs": 4, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "logging_steps": 5,
            "eval_strategy": "epoch", "load_best_model_at_end": True, "torch_threads": 1,
        },
        "evaluate": {"drift": False, "tasks": [{"name": "topic", "scorer": "classification", "data": held_out}]},
    }  # fmt: skip


@pytest.mark.parametrize("greater", [None, False])
def test_the_best_by_a_figure_of_the_objective_is_what_is_left(topics: dict[str, Any], greater: bool | None) -> None:
    topics["train"] |= {"metric_for_best_model": "accuracy", "greater_is_better": greater}
    done = luthier.run(topics, quiet=True)
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").open()]
    told = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]
    assert len(told) == 4
    assert len(set(told)) > 1
    results = json.loads((done.folder / "results.json").read_text())
    wanted = max(told) if greater is None else min(told)
    assert results["tuned"]["topic"]["accuracy"]["value"] == pytest.approx(wanted)
    last = json.loads((done.folder / "eval_results.json").read_text())
    assert last["eval_accuracy"] == pytest.approx(told[-1])


def test_a_metric_that_no_evaluation_tells_stops_before_the_first_step(topics: dict[str, Any]) -> None:
    topics["train"]["metric_for_best_model"] = "eval_f1"
    with pytest.raises(LuthierError, match="'eval_f1': an evaluation of classification tells eval_loss, eval_accuracy"):
        luthier.run(topics, quiet=True)
    assert not list(Path(topics["output_dir"]).glob("checkpoint-*"))
