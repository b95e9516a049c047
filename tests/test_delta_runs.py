"""A run that saves a delta, and every verb that takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.core.config import ConfigError, ModelSettings
from luthier.core.method import LuthierError

TASK = {"name": "copy", "scorer": "skills", "world": "sequence", "task": "copy", "n": 4, "max_new_tokens": 8}


def test_a_run_saves_what_moved_and_all_verbs_take_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["tuner"] = {"name": "lightweight", "variant": "last_block"}
    whole = luthier.run(recipe, quiet=True, overrides={"output_dir": str(tmp_path / "whole")})
    done = luthier.run(recipe, quiet=True, overrides={"train.save_delta": True})
    delta = done.folder / "delta"
    assert not (done.folder / "model").exists()
    weighed = done.results["cost"]["stored_bytes"]
    assert weighed < 0.5 * whole.results["cost"]["stored_bytes"]
    wanted = luthier.load(str(whole.folder)).model.state_dict()
    for name in (done.folder, delta):
        loaded = luthier.load(str(name))
        assert all(torch.equal(t, wanted[n]) for n, t in loaded.model.state_dict().items())
    loaded.delta.remove()
    base = luthier.load(recipe["model"]).model.state_dict()
    assert all(torch.equal(t, base[n]) for n, t in loaded.model.state_dict().items())
    assert luthier.generate(str(delta), ["copy:"], max_new_tokens=5) == luthier.generate(
        str(whole.folder), ["copy:"], max_new_tokens=5
    )
    assert luthier.evaluate(str(delta), [TASK]) == luthier.evaluate(str(whole.folder), [TASK])
    assert luthier.merge(str(done.folder), tmp_path / "merged").passed
    merged = luthier.load(str(tmp_path / "merged")).model.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in merged.items())
    with pytest.raises(LuthierError, match="belongs to another base"):
        luthier.load(ModelSettings(model_name_or_path="nano-1m", adapter=str(delta)))


def test_with_a_new_class_head(recipe: dict[str, Any]) -> None:
    """Head and pooler are in no file of the base: whatever they are when it is loaded again, the delta replaces them."""
    recipe |= {"model": "nano-encoder", "objective": {"name": "classification"}, "tuner": {"name": "bitfit"}}
    recipe["data"] = {"train": "sandbox:labels?task=sentiment_label&n=32"}
    recipe["train"] |= {"max_steps": 2, "save_delta": True}
    done = luthier.run(recipe, quiet=True)
    torch.manual_seed(99)
    loaded = luthier.load(str(done.folder))
    for name, tensor in done.loaded.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}


def test_adapters_are_small_already(recipe: dict[str, Any]) -> None:
    recipe["tuner"] = {"name": "lora", "r": 2}
    recipe["train"]["save_delta"] = True
    with pytest.raises(ConfigError, match=r"train\.save_delta .* 'lora' saves is small already"):
        luthier.run(recipe, quiet=True)
