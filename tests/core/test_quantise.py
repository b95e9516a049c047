"""Rounding to a quantised base's levels, against a search over all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import luthier
from luthier.core.method import LuthierError, Refusal
from luthier.core.quantise import BLOCK, NF4, QuantisedLinear, bits, hold, quantised


@pytest.mark.parametrize("shape", [(4, 64), (5, 48), (3, 7)])
def test_nf4_is_the_nearest_level_of_its_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    out = quantised(weight, "nf4").flatten().double()
    flat = weight.flatten().double()
    for start in range(0, len(flat), BLOCK):
        block, found = flat[start : start + BLOCK], out[start : start + BLOCK]
        levels = torch.tensor(NF4, dtype=torch.float64) * block.abs().max()
        gaps = (block[:, None] - levels).abs()
        assert torch.allclose((block - found).abs(), gaps.min(1).values, atol=1e-6)
        assert ((found[:, None] - levels).abs().min(1).values < 1e-6).all()
    assert torch.allclose(quantised(quantised(weight, "nf4"), "nf4"), quantised(weight, "nf4"))


def test_nf4_levels_are_those_of_normal_quantiles() -> None:
    """The paper's construction: quantiles of a normal distribution, an exact zero, both ends at one."""
    normal, offset = torch.distributions.Normal(0.0, 1.0), 0.9677083
    up = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    down = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([down, torch.zeros(1, dtype=torch.float64), up.flip(0)])
    assert torch.allclose(
        (levels / levels.abs().max()).sort().values, torch.tensor(NF4, dtype=torch.float64), atol=1e-6
    )


def test_int8_is_the_nearest_of_its_row() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    out = quantised(weight, "int8")
    for row, found in zip(weight, out, strict=True):
        step = float(row.abs().max()) / 127
        assert (row - found).abs().max() <= step / 2 + 1e-7
        assert (
            torch.equal(found, torch.zeros(20)) if step == 0 else torch.allclose((found / step).round() * step, found)
        )


def test_sizes_and_names() -> None:
    assert bits("nf4", 128) == 4.5
    assert bits("int8", 64) == 8.5
    assert quantised(torch.ones(2, 3).bfloat16(), "nf4").dtype == torch.bfloat16
    assert torch.equal(quantised(torch.zeros(2, 3), "nf4"), torch.zeros(2, 3))
    with pytest.raises(LuthierError, match="nf4, int8"):
        quantised(torch.ones(2, 2), "int3")


def test_nf4_levels_are_those_of_bitsandbytes() -> None:
    """Where that package is installed."""
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.allclose(functional.get_4bit_type("nf4", device="cpu").float(), torch.tensor(NF4), atol=1e-6)


# ------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("shape", [(48, 64), (33, 20)])
def test_a_quantised_layer_is_a_layer_of_rounded_weights(kind: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(shape[1], shape[0])
    layer = QuantisedLinear(plain, kind)
    rounded = quantised(plain.weight.detach(), kind)
    assert torch.equal(layer.weight, rounded)
    x, y = (torch.randn(3, 5, shape[1], requires_grad=True) for _ in range(2))
    y.data = x.data.clone()
    out, wanted = layer(x), F.linear(y, rounded, plain.bias)
    assert torch.equal(out, wanted)
    out.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)
    assert layer.bytes <= (0.5 + 4 / 64) * (plain.weight.numel() + 64) if kind == "nf4" else True
    assert [n for n, _ in layer.named_parameters()] == ["bias"]


def test_nothing_of_a_quantised_matrix_is_kept_for_the_way_back() -> None:
    layer, kept = QuantisedLinear(nn.Linear(64, 640, bias=False), "nf4"), []
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x).sum().backward()
    assert sum(kept) < 640


def test_writing_into_a_quantised_matrix_is_refused() -> None:
    layer = QuantisedLinear(nn.Linear(8, 8), "int8")
    before = layer.weight.clone()
    for write in (lambda w: w.data.__iadd__(1.0), lambda w: w.__setitem__(0, 1.0), lambda w: w.add_(1.0)):
        with pytest.raises(LuthierError, match="cannot be changed"):
            write(layer.weight)
    with pytest.raises(LuthierError, match="cannot be changed"):
        layer.weight.data = before + 1
    assert torch.equal(layer.weight, before)
    assert type(layer.weight + 1) is torch.Tensor


def test_an_adapter_learns_on_levels_as_on_rounded_weights(recipe: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    """A whole run on a base in 4 bits, against the same run on a base whose matrices were rounded and stored in full."""
    recipe["tuner"] = "lora"
    rounded = luthier.load(str(tiny))
    assert hold(rounded.model, "nf4") > 0
    full = luthier.load(str(tiny))
    for name, module in rounded.model.named_modules():
        if isinstance(module, QuantisedLinear):
            full.model.get_submodule(name).weight.data = module.read()
    full.model.save_pretrained(tmp_path / "rounded")
    full.tokenizer.save_pretrained(tmp_path / "rounded")
    low = luthier.run(recipe, quiet=True, overrides={"load_in_4bit": True, "output_dir": str(tmp_path / "low")})
    same = luthier.run(
        recipe, quiet=True, overrides={"model": str(tmp_path / "rounded"), "output_dir": str(tmp_path / "same")}
    )
    adapters = [load_file(one.folder / "adapter" / "adapter_model.safetensors") for one in (low, same)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.allclose(adapters[0][k], adapters[1][k], atol=1e-5) for k in adapters[0])
    costs = [json.loads((one.folder / "results.json").read_text())["cost"] for one in (low, same)]
    assert costs[0]["trainable_parameters"] == costs[1]["trainable_parameters"]
    assert costs[0]["total_parameters"] == costs[1]["total_parameters"]
    assert costs[0]["peak_memory_bytes"] < costs[1]["peak_memory_bytes"]


def test_what_moves_the_matrices_themselves_refuses_levels(recipe: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="full moves the model's own matrices"):
        luthier.run(recipe, quiet=True, overrides={"load_in_4bit": True})


@pytest.mark.parametrize(
    "tuner", ["dora", "ia3", "bottleneck", "compacter", "prompt_tuning", "dylora", "parallel", "mam"]
)
def test_adapters_of_all_kinds_begin_and_learn_on_levels(recipe: dict[str, Any], tuner: str) -> None:
    recipe["tuner"], recipe["train"]["max_steps"] = tuner, 2
    done = luthier.run(recipe, quiet=True, overrides={"load_in_8bit": True})
    losses = [json.loads(line)["loss"] for line in (done.folder / "metrics.jsonl").open()]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert (done.folder / "adapter" / "adapter_config.json").exists()
