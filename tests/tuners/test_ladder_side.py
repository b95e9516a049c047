"""What stays out of the graph, where the side network stands, gates, and options."""

from typing import Any

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners.ladder_side import LadderSide

EXAMPLE = LadderSide.example()


def parts(model: Any) -> list[Any]:
    body = anatomy(model)
    stack = [layer.name for layer in body.layers if layer.stack == body.layers[-1].stack]
    return [model.get_base_model().get_submodule(n).parts["default"] for n in stack]


@pytest.mark.parametrize("world", battery.worlds(EXAMPLE), ids=lambda w: w.architecture)
def test_the_graph_keeps_nothing_of_the_blocks(world: Any) -> None:
    """Inside every block nothing needs a gradient; only after the last does the state need one."""
    model = battery.moved(EXAMPLE, world).train()
    base, inside, after = model.get_base_model(), [], []
    for layer in anatomy(model).layers:
        block = base.get_submodule(layer.name)
        block.register_forward_hook(lambda m, args, out: after.append(out[0] if isinstance(out, tuple) else out))
        for matrix in layer.matrices:
            base.get_submodule(matrix.module).register_forward_hook(lambda m, args, out: inside.append(out))
    with torch.enable_grad():
        world.answers(model, world.batch())
    assert inside
    assert not any(out.requires_grad for out in inside)
    assert [y.requires_grad for y in after] == [False] * (len(after) - 1) + [True]


def test_a_closed_gate_hides_its_block() -> None:
    """With m_l = 0 what V_l says does not count; with m_l = 1 the state below does not."""
    world = WORLDS[0]
    for value, hidden in ((-1e3, "read"), (1e3, "enter")):
        model = battery.moved(EXAMPLE, world)
        first = parts(model)[0]
        first.gate.data.fill_(value)
        before = world.said(model)
        getattr(first, hidden).weight.data.normal_()
        assert torch.equal(world.said(model), before)
        getattr(first, "enter" if hidden == "read" else "read").weight.data.normal_()
        assert not torch.allclose(world.said(model), before)


def test_an_encoder_is_left_alone() -> None:
    world = next(w for w in WORLDS if w.kind == "encoder-decoder")
    names = [n for n, p in battery.wrapped(EXAMPLE, world).named_parameters() if p.requires_grad]
    assert names
    assert all(".decoder." in n for n in names)


@pytest.mark.parametrize("options", [{"reduction": 32}, {"reduction": 3, "act": "relu"}, {"temperature": 1.0}])
def test_options_keep_the_count_and_the_start(options: dict[str, Any]) -> None:
    tuner = LadderSide(**options)
    for world in WORLDS[:3]:
        battery.check_count(tuner, world)
        battery.check_identity(tuner, world)


def test_gates_are_not_decayed() -> None:
    model = battery.wrapped(EXAMPLE, WORLDS[0])
    groups = EXAMPLE.groups(model)
    assert groups is not None
    assert [g["weight_decay"] for g in groups] == [0.0]
    assert len(groups[0]["params"]) == len(parts(model))


def test_errors() -> None:
    with pytest.raises(LuthierError, match="reduction is 0"):
        LadderSide(reduction=0)
    with pytest.raises(LuthierError, match="only 32 wide"):
        battery.wrapped(LadderSide(reduction=33), WORLDS[0])
