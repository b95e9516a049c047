"""What a user of tuning tools tries on the first day: ten acceptance tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import luthier
from luthier import data, sandbox
from luthier.core import config
from luthier.core.batch import TextExample, collate_packed, collate_text
from luthier.core.logprobs import Scorer


def _cli(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.cli", *words], capture_output=True, text=True, check=False, **more
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_1_three_formats_give_identical_ids_and_masks(tmp_path: Path) -> None:
    pairs = [("copy: a b c ->", "a b c"), ("Wie geht's?", "Gut, danke! ✓")]
    sources = {
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in pairs],
        "sharegpt": [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in pairs],
        "messages": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs
        ],
    }
    tokenizer = sandbox.tokenizer()
    made = {
        n: data.prepare(_write(tmp_path / f"{n}.jsonl", r), tokenizer=tokenizer).examples for n, r in sources.items()
    }
    first = [(e.ids, e.counts) for e in made["messages"]]
    assert any(any(c) for _, c in first)
    for name, examples in made.items():
        assert [(e.ids, e.counts) for e in examples] == first, name


def test_2_a_typo_stops_the_run_with_a_suggestion(tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["train"]["learning_rat"] = 1e-3
    file = tmp_path / "typo.yaml"
    file.write_text(yaml.safe_dump(recipe))
    done = _cli("run", str(file))
    assert done.returncode == 2
    assert "learning_rat" in done.stderr
    assert "did you mean 'learning_rate'?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path(recipe["output_dir"]).exists()


def test_3_the_preview_shows_the_end_of_turn_as_trained(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}]
    tokenizer = sandbox.tokenizer()
    prepared = data.prepare(_write(tmp_path / "chat.jsonl", rows), tokenizer=tokenizer)
    (example,) = prepared.examples
    trained = [t for t, c in zip(example.ids, example.counts, strict=True) if c]
    rendered = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    end_of_turn = tokenizer(rendered, add_special_tokens=False)["input_ids"][-1]
    assert end_of_turn in trained
    assert tokenizer.decode([end_of_turn]).strip() in data.preview_text(prepared, tokenizer, 1)


def test_4_kill_at_a_step_and_resume_gives_the_same_weights(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["train"] |= {"save_strategy": "steps", "save_steps": 2, "weight_decay": 0.01}
    whole = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "whole")})

    class Killed(BaseException):
        pass

    class Kill(luthier.core.loop.LoopCallback):
        def step(self, loop: Any) -> None:
            if loop.step_index == 5:
                raise Killed

    with pytest.raises(Killed):
        luthier.run(recipe, quiet=True, callbacks=[Kill()])
    again = luthier.run(recipe, quiet=True, resume=True)
    a, b = (load_file(r.folder / "model" / "model.safetensors") for r in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    losses = [[r["loss"] for r in map(json.loads, (x.folder / "metrics.jsonl").open())] for x in (whole, again)]
    assert losses[0] == losses[1]


def test_5_accumulation_does_not_change_the_loss_curve(recipe: dict[str, Any], tmp_path: Path) -> None:
    curves = []
    for size, accumulation in ((8, 1), (1, 8)):
        done = luthier.run(
            recipe, quiet=True,
            overrides={
                "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
                "output_dir": str(tmp_path / f"run{size}"),
            },
        )  # fmt: skip
        curves.append([r["loss"] for r in done.fitted.log if "loss" in r])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_6_packed_and_unpacked_give_the_same_loss_per_sample(tiny: Path) -> None:
    loaded = luthier.load(str(tiny)).model.eval()
    generator = torch.Generator().manual_seed(3)
    examples = []
    for i, n in enumerate((5, 17, 9, 3, 12)):
        ids = torch.randint(5, 500, (n,), generator=generator).tolist()
        examples.append(TextExample(i, ids, [t > n // 3 for t in range(n)]))
    scorer = Scorer(loaded)
    with torch.no_grad():
        plain, packed = collate_text(examples, 0), collate_packed([examples[:3], examples[3:]], 0)
        apart, together = scorer.answer_logp(plain), scorer.answer_logp(packed)
    assert torch.allclose(apart, together, atol=1e-4)
    assert plain.rows.tolist() == packed.rows.tolist()


@pytest.fixture
def lora_run(recipe: dict[str, Any]) -> luthier.verbs.run.RunResult:  # type: ignore[name-defined]
    recipe["tuner"] = {"name": "lora", "r": 4, "targets": ["q", "v", "down"]}
    recipe["train"]["learning_rate"] = 2e-2
    return luthier.run(recipe, quiet=True)


def test_7_merged_and_adapter_write_the_same(lora_run: Any, tmp_path: Path) -> None:
    prompts = ["copy: a b c ->", "Q: What is the age of", "once"]
    check = luthier.merge(lora_run.folder, tmp_path / "merged")
    assert check.passed
    told = [
        luthier.generate(str(where), prompts, max_new_tokens=12) for where in (lora_run.folder, tmp_path / "merged")
    ]
    assert told[0] == told[1]


def test_8_peft_loads_the_lora_result_without_luthier(lora_run: Any, tiny: Path) -> None:
    script = f"""
import sys, torch
sys.modules["luthier"] = None                     # importing luthier would fail
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(tiny)!r}), {str(lora_run.folder / "adapter")!r})
print(float(model(input_ids=torch.arange(5, 25)[None]).logits.double().sum()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own = lora_run.loaded.model(input_ids=torch.arange(5, 25)[None]).logits.double().sum()
    assert float(done.stdout.strip().splitlines()[-1]) == pytest.approx(float(own), rel=1e-9)


def test_9_harness_tells_base_from_tuned_and_merged_agrees(lora_run: Any, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra: pip install luthier[eval]")
    rows = [{"q": r["prompt"], "a": r["completion"]} for r in sandbox.rows("sequence", task="copy", n=20, split="test")]
    _write(tmp_path / "copy.jsonl", rows)
    (tmp_path / "copying.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "copying", "dataset_path": "json", "test_split": "train", "output_type": "loglikelihood",
                "dataset_kwargs": {"data_files": {"train": str(tmp_path / "copy.jsonl")}},
                "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "target_delimiter": "",
                "metric_list": [{"metric": "perplexity"}], "metadata": {"version": 1},
            }
        )
    )  # fmt: skip
    luthier.merge(lora_run.folder, tmp_path / "merged")
    told = {
        name: luthier.evaluate(str(where), [str(tmp_path / "copying.yaml")], harness=True)["results"]["copying"]
        for name, where in (("base", tiny), ("adapter", lora_run.folder), ("merged", tmp_path / "merged"))
    }
    value = {k: v["perplexity,none"] for k, v in told.items()}
    assert value["adapter"] == pytest.approx(value["merged"], rel=1e-4)
    assert abs(value["base"] - value["adapter"]) / value["base"] > 0.05


def test_10_compare_prints_the_same_table_twice(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["evaluate"] = {
        "drift": False,
        "tasks": [
            {"name": "copy", "scorer": "skills", "world": "sequence", "task": "copy", "n": 10, "max_new_tokens": 12}
        ],
    }
    told = config.recipe(recipe)
    tables = [
        luthier.compare(told, methods=["full", "hft", "lora"], quiet=True, output_dir=tmp_path / str(i)).table_text()
        for i in range(2)
    ]
    assert tables[0] == tables[1]
    assert all(name in tables[0] for name in ("full", "hft", "lora", "copy"))
