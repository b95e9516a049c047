"""Broken inputs of every verb that reads a model: one line that names the file or model, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import luthier
from luthier.core.method import LuthierError
from luthier.verbs.load import load

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    torch.manual_seed(4)
    wanted = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    loaded, folder = load(str(tiny)), tmp_path / "adapter"
    get_peft_model(loaded.model, wanted).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def with_nan(file: Path) -> None:
    state = load_file(file)
    name = next(n for n in sorted(state) if n.endswith(("lora_A.weight", "down_proj.weight")))
    state[name][0, 0] = float("nan")
    save_file(state, file, metadata={"format": "pt"})


def refused(what: Callable[[], Any], *words: str) -> None:
    with pytest.raises(LuthierError) as told:
        what()
    assert "\n" not in str(told.value)
    assert all(word in str(told.value) for word in words), str(told.value)


def left(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


def copied(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    return folder


def sharded(tiny: Path, folder: Path) -> Path:
    loaded = load(str(tiny))
    loaded.model.save_pretrained(folder, max_shard_size="60KB")
    loaded.tokenizer.save_pretrained(folder)
    return folder


def verbs(model: Path, out: Path) -> list[Callable[[], Any]]:
    rows = [{"prompt": "a", "answer": "b"}]
    task = {"name": "t", "scorer": "exact_match", "data": rows, "max_new_tokens": 2}
    return [
        lambda: luthier.generate(str(model), ["a b"], max_new_tokens=2),
        lambda: luthier.evaluate(str(model), [task], output=out / "results.json"),
        lambda: luthier.merge([model, model], out / "merged"),
    ]


def test_truncated_models(tiny: Path, tmp_path: Path) -> None:
    whole, parts, gap = (
        copied(tiny, tmp_path / "whole"),
        sharded(tiny, tmp_path / "parts"),
        sharded(tiny, tmp_path / "gap"),
    )
    shorter(whole / MODEL)
    shorter(sorted(parts.glob("model-*"))[1])
    sorted(gap.glob("model-*"))[1].unlink()
    before = left(tmp_path)
    for model in (whole, parts, gap):
        for verb in verbs(model, tmp_path / "out"):
            refused(verb, str(model))
    assert left(tmp_path) == before


def test_truncated_adapters(adapter: Path, tmp_path: Path) -> None:
    shorter(adapter / ADAPTER)
    before = left(tmp_path)
    refused(lambda: luthier.generate(str(adapter), ["a b"], max_new_tokens=2), str(adapter))
    refused(lambda: luthier.merge(adapter, tmp_path / "out"), str(adapter))
    assert left(tmp_path) == before


def test_merging_an_adapter_with_nan_in_it_or_in_its_base(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    broken, base = tmp_path / "broken", copied(tiny, tmp_path / "base")
    shutil.copytree(adapter, broken)
    with_nan(broken / ADAPTER)
    with_nan(base / MODEL)
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": str(base)}))
    before = left(tmp_path)
    for source in (broken, adapter):
        refused(lambda source=source: luthier.merge(source, tmp_path / "out"), str(source), "NaN")  # type: ignore[misc]
    assert left(tmp_path) == before


def test_where_an_adapter_may_not_be_merged_to(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = left(tmp_path)
    refused(lambda: luthier.merge(adapter, tmp_path / "file" / "out"), "cannot be written")
    refused(lambda: luthier.merge(adapter, tmp_path / "file"), "no model folder")
    assert left(tmp_path) == before and (tmp_path / "file").read_text() == "mine"


def test_models_of_other_vocabularies_beside_one_another(tiny: Path, tmp_path: Path) -> None:
    other = copied(tiny, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(words))
    steered = {"name": "proxy_tuning", "expert": str(other), "anti_expert": str(tiny)}
    for told in (steered, {"name": "speculative", "draft": str(other)}):
        refused(lambda told=told: luthier.generate(str(tiny), ["a"], decoding=told), str(other), "tokenizer")  # type: ignore[misc]


def test_a_run_on_a_broken_model_or_to_a_place_that_cannot_be_written(
    recipe: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    broken = copied(tiny, tmp_path / "broken")
    shorter(broken / MODEL)
    (tmp_path / "file").write_text("mine")
    before = left(tmp_path)
    refused(lambda: luthier.run({**recipe, "model": str(broken)}, quiet=True), str(broken))
    refused(
        lambda: luthier.run({**recipe, "output_dir": str(tmp_path / "file" / "run")}, quiet=True), "cannot be written"
    )
    assert left(tmp_path) == before
