"""Deltas: on and off again to the last bit, small where little moved, and never on another base."""

import json

import pytest
import torch
from safetensors.torch import load_file

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, model_of
from luthier.core import catalog
from luthier.core.delta import apply_delta, base_hash, save_delta
from luthier.core.method import LuthierError


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    views = [torch.uint8, torch.uint8]
    return a.keys() == b.keys() and all(
        torch.equal(a[n].flatten().view(views[0]), b[n].flatten().view(views[1])) for n in a
    )


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.label)
@pytest.mark.parametrize("tuner", ["full", "lightweight", "hft", "reinit"])
def test_on_and_off_to_the_last_bit(world, tuner: str, tmp_path) -> None:
    tuned = battery.moved(catalog.load("tuners", tuner).example(), world)
    save_delta(tmp_path, world.base(), tuned, name="base", task=world.task)
    model = world.base()
    applied = apply_delta(model, tmp_path)
    assert same(model, tuned)
    applied.remove()
    assert same(model, world.base())


def test_little_movement_is_places_and_values(tmp_path) -> None:
    world = WORLDS[0]
    tuner = catalog.load("tuners", "child_tuning")(variant="task_driven", share=0.02, rows=4)
    model = battery.wrapped(tuner, world)
    battery.loop(tuner, world, model, 3).fit()
    told = save_delta(tmp_path, world.base(), model, name="base", task=world.task)
    kinds = {t["kind"] for t in told["tensors"].values() if t["moved"] > 4}
    assert "sparse" in kinds
    assert sum(t["moved"] for t in told["tensors"].values()) <= tuner.parameter_count(world.base())
    whole = sum(p.numel() * 4 for p in model.parameters())
    assert (tmp_path / "delta.safetensors").stat().st_size < whole / 4
    again = world.base()
    apply_delta(again, tmp_path)
    assert same(again, model)


def test_dense_where_dense_is_smaller(tmp_path) -> None:
    base, tuned = model_of("llama"), model_of("llama")
    with torch.no_grad():
        tuned.model.norm.weight += 1  # every element
        tuned.lm_head.weight[3, 5] += 1  # one
    told = save_delta(tmp_path, base, tuned, name="base", task="causal_lm")["tensors"]
    assert told["model.norm.weight"]["kind"] == "dense"
    assert told["lm_head.weight"] | {"shape": 0} == {"shape": 0, "dtype": "float32", "kind": "sparse", "moved": 1}
    assert set(told) == {"model.norm.weight", "lm_head.weight"}
    held = load_file(tmp_path / "delta.safetensors")
    assert held["lm_head.weight#at"].tolist() == [3 * tuned.lm_head.weight.shape[1] + 5]


def test_bits_count_not_values(tmp_path) -> None:
    """In bfloat16, with a zero that changed its sign and a value that is not a number."""
    base, tuned = model_of("llama").bfloat16(), model_of("llama").bfloat16()
    with torch.no_grad():
        base.lm_head.weight[0, 0] = 0.0
        tuned.lm_head.weight[0, 0] = -0.0
        tuned.lm_head.weight[0, 1] = float("nan")
    save_delta(tmp_path, base, tuned, name="base", task="causal_lm")
    model = model_of("llama").bfloat16()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 0.0
    applied = apply_delta(model, tmp_path)
    assert same(model, tuned)
    applied.remove()
    assert same(model, base)


def test_another_base_is_refused_in_one_line(tmp_path) -> None:
    base, tuned, other = (model_of("llama") for _ in range(3))
    with torch.no_grad():
        tuned.lm_head.weight += 1
        other.model.norm.weight[0] += 1
    save_delta(tmp_path, base, tuned, name="the base", task="causal_lm")
    before = base_hash(other)
    for wrong in (other, model_of("llama").bfloat16(), model_of("gpt2")):
        with pytest.raises(
            LuthierError, match="belongs to another base than the one given: it was made on 'the base'"
        ) as e:
            apply_delta(wrong, tmp_path)
        assert "\n" not in str(e.value)
    assert base_hash(other) == before


def test_new_tensors_are_whole_and_not_part_of_the_base(tmp_path) -> None:
    """A class head differs whenever the base is loaded: any head will do, and the tuned one takes its place."""
    base, tuned, again = (model_of("bert-classifier") for _ in range(3))
    with torch.no_grad():
        tuned.bert.pooler.dense.bias += 1
        again.classifier.weight.normal_()
    new = ["classifier.weight", "classifier.bias"]
    told = save_delta(tmp_path, base, tuned, name="base", task="classification", new=new)
    assert {told["tensors"][n]["kind"] for n in new} == {"dense"}
    apply_delta(again, tmp_path)
    assert same(again, tuned)


def test_folders_that_are_none(tmp_path) -> None:
    with pytest.raises(LuthierError, match="this is not a delta folder"):
        apply_delta(model_of("llama"), tmp_path)
    save_delta(tmp_path, model_of("llama"), model_of("llama"), name="base", task="causal_lm")
    about = json.loads((tmp_path / "delta.json").read_text())
    (tmp_path / "delta.json").write_text(json.dumps({**about, "format": 9}))
    with pytest.raises(LuthierError, match="newer than this luthier"):
        apply_delta(model_of("llama"), tmp_path)
