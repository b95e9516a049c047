"""What "connected" means, on both placements of norms, and the options that the common checks do not reach."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core import catalog
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners.iaa import Iaa

EXAMPLE = Iaa.example()
SCATTERED = catalog.load("tuners", "bottleneck").example()
OPTIONS = [
    {"inside": "sequential"}, {"inside": "parallel"}, {"inside": "none"}, {"wiring": "ladder", "inside": "none"},
    {"wiring": "ladder", "inside": "none", "detach": True}, {"targets": ("down",)},
]  # fmt: skip


def part(layer: nn.Module) -> Any:
    return layer.parts["default"]


def reached(tuner: Any, architecture: str) -> list[bool]:
    """Sub-layer by sub-layer: do its own modules get a gradient when everything frozen on the path is a constant?

    Constants are what a plain run gave: F's output and input z, and the residual copy of x. What is left between
    sub-layers are trained modules, additions and norms.
    """
    world = next(w for w in WORLDS if w.architecture == architecture)
    model = battery.moved(tuner, world).get_base_model()
    body, known = anatomy(model), {}

    def keep(key: tuple[str, str]) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            known[key] = (args[0].detach(), out.detach())

        return hook

    for layer in body.layers:
        for first, last in (("q", "o"), ("up", "down")):
            names = layer.matrix(first).module, layer.matrix(last).module
            owners = [model.get_submodule(n) for n in names]
            plain = [getattr(m, "base_layer", m) for m in owners]
            plain[0].register_forward_hook(keep((layer.name, first)))
            plain[1].register_forward_hook(keep((layer.name, last)))
        for norm in layer.norms:
            model.get_submodule(norm).register_forward_hook(keep((layer.name, norm)))
    world.said(model)
    stream: Tensor | None = None
    sites = []
    for layer in body.layers:
        for norm, (first, last) in zip(layer.norms, (("q", "o"), ("up", "down")), strict=True):
            site, normalise = part(model.get_submodule(layer.matrix(last).module)), model.get_submodule(norm)
            residual = known[layer.name, norm][0] if body.kind == "decoder" else known[layer.name, first][0]
            stream = residual if stream is None else stream
            if hasattr(site, "shared"):
                site.shared.put(normalise(stream) if body.kind == "decoder" else stream)
            z, y = known[layer.name, last]
            stream = residual + site(y, z)
            stream = stream if body.kind == "decoder" else normalise(stream)
            sites.append(site)
    model.zero_grad()
    (stream * torch.arange(stream.shape[-1])).sum().backward()
    return [any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in site.parameters()) for site in sites]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_connected_and_scattered(architecture: str) -> None:
    assert reached(EXAMPLE, architecture) == [True] * 4
    assert reached(SCATTERED, architecture) == [False] * 3 + [True]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("check", ["identity", "count", "moves", "several", "resume", "generate", "checkpointing"])
def test_options_keep_the_checks(options: dict, check: str) -> None:
    tuner = Iaa(**{"inside_size": 4, "aside_size": 3, **options})
    for world in battery.worlds(tuner):
        if world.kind != "encoder" or check != "generate":
            getattr(battery, f"check_{check}")(tuner, world)


def test_nothing_goes_backward_below_the_last_block() -> None:
    """A detached ladder without inside modules needs no gradient of any block."""
    tuner, world = Iaa(inside="none", wiring="ladder", detach=True, aside_size=4), WORLDS[0]
    model = battery.moved(tuner, world).train()
    seen = []
    for layer in anatomy(model).layers:
        model.get_base_model().get_submodule(layer.name).register_forward_hook(
            lambda m, args, out: seen.append(out.requires_grad) if torch.is_grad_enabled() else None
        )
    world.loss(model)
    assert seen == [False, True]


def test_nothing_is_held_after_a_pass() -> None:
    for tuner in (EXAMPLE, Iaa(wiring="ladder", inside="none")):
        model = battery.moved(tuner, WORLDS[0])
        WORLDS[0].said(model)
        assert all(m.shared.held is None for m in model.modules() if isinstance(getattr(m, "shared", None), nn.Module))


def test_half_the_budget_is_aside() -> None:
    """BERT-base, post-norm: with r = s the scalars of S are those of a sequential I, and all count."""
    tuner, world = Iaa(inside="sequential", inside_size=4, aside_size=4), WORLDS[2]
    model = battery.wrapped(tuner, world)
    asides = sum(p.numel() for n, p in model.named_parameters() if ".aside." in n)
    assert asides == tuner.parameter_count(world.base()) // 2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"targets": ("q",)}, "last matrix"), ({"detach": True}, "ladder"), ({"wiring": "ladder"}, "inside: none")],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(LuthierError, match=words):
        Iaa(**options)
