"""The exam procedure: what it refuses before anything runs, and what it tells of formats and builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.core import config
from luthier.core.config import ConfigError
from luthier.core.method import LuthierError
from luthier.data import read

TEST = "sandbox:exam?task=mixed&split=test&n=8"


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "nano-1m", "procedure": {"name": "exam", "test": TEST, "formats": ["letters", "cot"], "permutations": 0,
                                          "max_new_tokens": 8},
        "data": {"train": "sandbox:exam?task=mixed&n=32", "val_size": 0.25, "wording": "bare"},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "torch_threads": 1},
        "evaluate": {"drift": False, "limit": 4}, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def test_formats_and_builds(recipe: dict[str, Any], tmp_path: Path) -> None:
    done = luthier.run(recipe, quiet=True)
    found = json.loads((tmp_path / "run" / "exam.json").read_text())
    assert found["steps"] == {"letters": 2, "cot": 2} and found["duplicates"] == []
    assert found["rows"]["cot"]["longest"] > found["rows"]["letters"]["longest"] and found["rows"]["cot"]["rows"] == 32
    cells = {c["method"]: c for c in done.told["cells"]}
    for form, cell in cells.items():
        run = tmp_path / "run" / cell["run"]
        told = config.recipe(run / "recipe.yaml")
        assert told.data.options["target"] == form == told.evaluate.tasks[0]["target"] and told.data.group == "test_id"
        assert told.tuner == {"name": "lora", "r": 16, "alpha": 16.0, "dropout": 0.05, "targets": ["all"]}
        base = json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert Path(base).name == "base-nf4"  # what is served by default is what training saw
        assert set(cell["results"]["tuned"]["exam"]) == {
            "share",
            "points",
            "single",
            "matching",
            "unparsed",
            "mattered",
        }
    assert [b["run"] for b in found["builds"]] == [c["run"] for c in cells.values()]
    for one in found["builds"]:
        rows = {r["name"]: r for r in one["rows"]}
        assert rows["kept"]["max_logit_difference"] < 1e-4 and rows["original"]["max_logit_difference"] > 1e-3
        served = cells[one["run"].rpartition("-seed")[0]]["results"]["tuned"]["exam"]
        assert rows["served"]["figures"]["points"] == pytest.approx(served["points"]["value"])
        assert max(one["ratio"].values()) < 1  # two steps


def test_an_exam_in_two_parts_stops_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = read(recipe["data"]["train"]).rows
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:8]))
    recipe["procedure"]["test"] = str(tmp_path / "test.jsonl")
    with pytest.raises(LuthierError, match="has the exam of"):
        luthier.run(recipe, quiet=True)
    assert not (tmp_path / "run" / "compare.json").exists()


def test_a_planted_duplicate_is_told(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows, planted = read(recipe["data"]["train"]).rows, read(TEST).rows
    planted[3] = planted[3] | {"comment": rows[0]["comment"].upper()}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in planted))
    told = config.recipe(recipe, {"procedure.test": str(tmp_path / "test.jsonl")})
    procedure, said = told.method("recipes", "procedure"), []
    found = procedure._parts(procedure._told(told), said.append)
    assert len(found) == 1 and f"task {planted[3]['test_id']}/{planted[3]['task_id']} has the solution of " in found[0]
    assert said[-1] == f"exam: WARNING: {found[0]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"procedure.test": None}, "procedure.test"),
        ({"data.type": "chat"}, "remove data.type"),
        ({"data.target": "cot"}, "remove data.type and data.target"),
        ({"objective": {"name": "dpo"}}, "takes no rows of type exam"),
    ],
)
def test_what_it_refuses(recipe: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        luthier.run(config.recipe(recipe, change), quiet=True)


@pytest.mark.parametrize(
    ("shape", "millions"),
    [
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 8}, 41.9),
        ({"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
          "num_key_value_heads": 8}, 24.3),
        ({"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
          "num_key_value_heads": 8, "head_dim": 256}, 54.0),
    ],
    ids=["Llama-3.1-8B", "Llama-3.2-3B", "Gemma-2-9B"],
)  # fmt: skip
def test_trained_parameters_of_the_papers_models(shape: dict[str, int], millions: float) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.recipes.exam import TUNER

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape))
    tuner = config.build("tuners", TUNER, "tuner")
    assert round(tuner.parameter_count(model) / 1e6, 1) == millions
