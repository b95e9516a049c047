"""The space of adapters: every point keeps what the named ones keep, and the identities of card 19."""

import dataclasses

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._compare import close
from luthier.checks._models import MORE_ARCHITECTURES, WORLDS, World, model_of
from luthier.core import catalog
from luthier.core.adapt import ModulePart

PARALLEL, PFEIFFER, BOTTLENECK = (catalog.load("tuners", n) for n in ("parallel", "pfeiffer", "bottleneck"))
POINTS = {
    "attention": {"targets": ("attention", "cross_attention")},
    "sequential": {"insertion": "sequential", "targets": ("attention", "feed_forward")},
    "matrices": {"targets": ("q", "v"), "act": "identity", "biases": False},
    "normed": {"norm": True, "act": "gelu"},
    "learned": {"composition": "learned", "scale": 1.0},
    "gated": {"composition": "gated"},
    "add": {"composition": "add"},
    "norms": {"train_norms": True, "targets": ("o", "down"), "insertion": "sequential"},
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("check", ["identity", "count", "moves", "padding", "off"])
def test_points(point: str, check: str) -> None:
    tuner = PARALLEL(size=4, **POINTS[point])
    for world in WORLDS:
        getattr(battery, f"check_{check}")(tuner, world)


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.architecture)
def test_the_start_is_the_base_to_the_last_bit(world: World) -> None:
    said = world.said(world.base())
    for targets in (("feed_forward",), ("attention",)):
        assert torch.equal(world.said(battery.wrapped(PARALLEL(size=4, targets=targets), world)), said)


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.architecture)
def test_scale_and_up_matrix_trade_off(world: World) -> None:
    tuner = PARALLEL(size=4, scale=4.0)
    model = battery.moved(tuner, world)
    other = battery.wrapped(dataclasses.replace(tuner, scale=1.0), world)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if ".up." in name and "luthier_" in name:
                parameter *= 4
    close(world.said(other), world.said(model), "(s, W) and (1, s W)")


def test_both_matrices_at_zero_would_be_dead() -> None:
    """One of the two is drawn in every composition, or nothing would ever move."""
    for composition in ("add", "scaled", "learned", "gated"):
        model = battery.wrapped(PARALLEL(size=4, composition=composition), WORLDS[0])
        for part in (m for m in model.modules() if isinstance(m, ModulePart)):
            assert bool(part.down.weight.any())


def test_a_trained_scale_has_no_weight_decay() -> None:
    world, tuner = WORLDS[0], PARALLEL(size=4, composition="learned")
    run = battery.loop(tuner, world, battery.wrapped(tuner, world), 1)
    run.fit()
    decays = {p.numel() == 1: g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    assert decays == {True: 0.0, False: 0.1}


def test_sequential_around_a_block_is_sequential_behind_its_last_matrix() -> None:
    """Also where the block adds its residual and norms the sum itself: the part comes before that."""
    for world in WORLDS:
        said = []
        for targets in (("feed_forward",), ("down",)):
            model = battery.wrapped(PFEIFFER(size=4, targets=targets), world)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".up." in name and "luthier_" in name:
                        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
            said.append(world.said(model))
        close(said[0], said[1], f"{world.label}: block and matrix")


@pytest.mark.parametrize(
    "architecture", [a for a, about in MORE_ARCHITECTURES.items() if about[1] != "embedding" and a != "opt"]
)
def test_other_architectures(architecture: str) -> None:
    tuner = PARALLEL.example()
    model = model_of(architecture)
    count = tuner.parameter_count(model)
    layers = 4 if "t5" in architecture else 2
    assert count == layers * (2 * 4 * 32 + 4 + 32)
    _, task, kind, _ = MORE_ARCHITECTURES[architecture]
    battery.check_off(tuner, World(architecture, task, kind))


def test_a_file_of_bottleneck_has_the_names_it_always_had(tmp_path) -> None:
    from safetensors.torch import load_file

    battery.wrapped(BOTTLENECK(size=4, norm=True), WORLDS[0]).save_pretrained(tmp_path)
    names = {k.partition("luthier_bottleneck_parts.")[2] for k in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == {f"{m}.{p}" for m in ("norm", "down", "up") for p in ("weight", "bias")}
