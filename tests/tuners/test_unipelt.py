"""What gates do when they are shut and open, and what they read."""

from typing import Any

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core import catalog
from luthier.core.method import LuthierError
from luthier.tuners.unipelt import Gate, GatedAttention, UniPELT

EXAMPLE = UniPELT.example()
HEADLESS = [w for w in battery.worlds(EXAMPLE) if w.task != "classification"]  # a task head moves as well
OPTIONS: list[dict[str, Any]] = [{"targets": ("q", "k", "v")}, {"targets": ()}]


def set_gates(model: Any, bias: float) -> None:
    for gate in (m for m in model.modules() if isinstance(m, Gate)):
        gate.weight.data.zero_()
        gate.bias.data.fill_(bias)


@pytest.mark.parametrize("world", HEADLESS, ids=lambda w: w.architecture)
def test_shut_gates_leave_the_base(world: Any) -> None:
    model = battery.moved(EXAMPLE, world)
    set_gates(model, -1e4)
    torch.testing.assert_close(world.said(model), world.said(world.base()))


@pytest.mark.parametrize("world", [WORLDS[0], WORLDS[4]], ids=lambda w: w.architecture)
def test_open_gates_are_prefix_tuning(world: Any) -> None:
    """As long as LoRA and adapter are nothing."""
    model = battery.wrapped(EXAMPLE, world)
    set_gates(model, 1e4)
    prefix = type(catalog.load("tuners", "prefix").example())(length=EXAMPLE.length, mlp=0)
    other = battery.wrapped(prefix, world)
    mine = [m for m in model.modules() if isinstance(m, GatedAttention)]
    theirs = [m for m in other.modules() if hasattr(m, "keys") and isinstance(m.keys, torch.nn.Parameter)]
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        b.keys.data.copy_(a.keys)
        b.values.data.copy_(a.values)
    torch.testing.assert_close(world.said(model), world.said(other))


def test_a_gate_reads_every_token() -> None:
    model = battery.moved(EXAMPLE, WORLDS[0])
    seen: list[torch.Tensor] = []
    gates = [m for m in model.modules() if isinstance(m, Gate)]
    for gate in gates:
        gate.register_forward_hook(lambda m, args, out: seen.append(out))
    WORLDS[0].said(model)
    assert len(seen) == len(gates) == 2 * 4  # two layers: q, v, the prefix, the adapter
    assert all(bool(((out > 0) & (out < 1)).all()) and out.std() > 0 for out in seen)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o["targets"]) or "none")
@pytest.mark.parametrize("check", ["count", "moves", "exported_keys"])
def test_options_keep_the_checks(options: dict[str, Any], check: str) -> None:
    tuner = UniPELT(r=2, length=2, size=3, **options)
    for world in WORLDS[:3]:
        getattr(battery, f"check_{check}")(tuner, world)


def test_nothing_is_left_after_a_pass() -> None:
    model = battery.moved(EXAMPLE, WORLDS[0])
    hooks = [len(m._forward_hooks) for m in model.modules()]
    WORLDS[0].said(model)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(m.open is None for m in model.modules() if isinstance(m, GatedAttention))


def test_errors() -> None:
    with pytest.raises(LuthierError, match="'o' is not a matrix in front of attention"):
        UniPELT(targets=("o",))
    with pytest.raises(LuthierError, match="length is 0"):
        UniPELT(length=0)
