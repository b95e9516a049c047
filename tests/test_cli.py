"""The command line: quick to start, one line for what is wrong, exit codes, every verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


def _cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "luthier.cli", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words", [("--help",), ("list",), ("list", "--json"), ("list", "--cards", "--json"), ("show", "hft")]
)
def test_listing_needs_no_model_library(words: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom luthier import cli\n"
        f"try:\n    cli.main({list(words)!r})\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_json_has_the_agreed_keys() -> None:
    rows = json.loads(_cli("list", "--json").stdout)
    assert {"tuners", "objectives", "data", "decoding", "edits", "evaluation"} <= {r["axis"] for r in rows}
    for row in rows:
        assert set(row) == {"axis", "name", "cards", "paper", "status", "checks_run", "checks_expected"}
        assert row["status"] in ("draft", "checked", "agreed", "reproduced", "contradicted")


def test_cards_json_covers_all_papers() -> None:
    rows = json.loads(_cli("list", "--cards", "--json").stdout)
    assert [r["card"] for r in rows] == list(range(1, 70))
    assert all(r["title"] and (r["parts"] or r["status"] == "none") for r in rows)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run", "nowhere.yaml"), 2, "no such recipe file"),
        (("show", "htf"), 2, "did you mean 'hft'?"),
        (("rum",), 2, "No such command"),
        (("run",), 2, "recipe"),
        (("merge", "nowhere", "-o", "out"), 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], code: int, told: str) -> None:
    done = _cli(*words)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tuner": {"name": "lora", "rank": 4}}, "unknown key 'rank'"),
        ({"objective": "dop"}, "did you mean 'dpo'?"),
        ({"model": "nano-2m"}, "nano-"),
        ({"objective": "classification"}, "takes rows of type labelled"),
        ({"data": {"train": "missing.jsonl"}}, "missing.jsonl"),
        ({"data": {"train": "sandbox:sequnce?task=copy"}}, "sequence"),
        ({"evaluate": {"tasks": [{"name": "x", "scorer": "exact_mtch"}]}}, "exact_match"),
    ],
)
def test_mistakes_in_a_recipe(recipe: dict[str, Any], tmp_path: Path, change: dict[str, Any], told: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**recipe, **change}))
    done = _cli("run", str(file), "--quiet")
    assert done.returncode in (1, 2), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (Path(recipe["output_dir"]) / "model").exists()


def test_repeated_keys_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("model: nano-1m\ndata: x.jsonl\nmodel: nano-5m\n")
    done = _cli("run", str(file))
    assert done.returncode == 2
    assert "line 3" in done.stderr
    assert "'model' stands twice" in done.stderr


def test_plan_preview_and_run_by_flags(recipe: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    plan = _cli("plan", str(file), "--tuner", "lora")
    assert "trainable params:" in plan.stdout, plan.stderr
    assert "all params:" in plan.stdout
    preview = _cli("data", "preview", str(file), "--rows", "1")
    assert "copy:" in preview.stdout, preview.stderr
    done = _cli("run", str(file), "--quiet", "--tuner=lora", "--lora_r", "2", "--max_steps", "2")
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load((Path(recipe["output_dir"]) / "recipe.yaml").read_text())
    assert told["tuner"]["r"] == 2
    assert told["train"]["max_steps"] == 2
    for name in ("run.json", "metrics.jsonl", "results.json", "report.html", "all_results.json", "trainer_state.json"):
        assert (Path(recipe["output_dir"]) / name).exists(), name


def test_doctor_tells_versions() -> None:
    done = _cli("doctor")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_asking_whether_peft_is_there_does_not_cost_the_registration() -> None:
    """transformers looks for peft before anybody imports it; luthier's types must register all the same."""
    script = (
        "import importlib.util, sys\nimport luthier\n"
        "assert importlib.util.find_spec('peft') and importlib.util.find_spec('peft')\n"
        "import peft\nassert 'LUTHIER_DYLORA' in peft.PeftType.__members__\n"
        "assert not [f for f in sys.meta_path if isinstance(f, luthier._WhenPeftIsImported)]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_options_of_a_decoding_method_are_not_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags after the words that a verb takes any number of belong to the decoding method."""
    import luthier.verbs.evaluate
    import luthier.verbs.generate
    from luthier import cli

    asked: list[Any] = []

    def generate(model: str, prompts: list[str], **given: Any) -> list[str]:
        asked.append((model, prompts, given["decoding"]))
        return ["x"] * len(prompts)

    def evaluate(model: str, tasks: list[str], **given: Any) -> dict[str, Any]:
        asked.append((model, tasks, given["decoding"], given["ceiling"]))
        return {}

    monkeypatch.setattr(luthier.verbs.generate, "generate", generate)
    monkeypatch.setattr(luthier.verbs.evaluate, "evaluate", evaluate)
    steered = ("--decoding", "proxy_tuning", "--expert", "runs/x", "--anti_expert", "small", "--alpha", "0.5")
    told = {"name": "proxy_tuning", "expert": "runs/x", "anti_expert": "small", "alpha": 0.5}
    for words, wanted in (
        (("generate", "big", "one", "- two", *steered, "--choose.top_p", "0.9"),
         ("big", ["one", "- two"], told | {"choose.top_p": 0.9})),
        (("generate", "big", "one"), ("big", ["one"], {"name": "greedy"})),
        (("evaluate", "big", "a", "b", "--ceiling", "top", *steered), ("big", ["a", "b"], told, "top")),
        (("evaluate", "big", "a"), ("big", ["a"], None, None)),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as done:
            cli.main(list(words))
        assert not done.value.code
        assert asked.pop() == wanted
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", "big", "a", "--alpha", "2"])
    assert done.value.code == 2
    assert "name it by --decoding" in capsys.readouterr().err
