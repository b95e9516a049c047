"""Child-Tuning: what is outside the child stays, and draws are the same however a step is split or resumed."""

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core import catalog
from luthier.core.anatomy import in_task_head
from luthier.core.loop import LoopCallback
from luthier.core.method import LuthierError

CHILD = catalog.load("tuners", "child_tuning")
LLAMA = WORLDS[0]


class Watch(LoopCallback):
    """Weights and masks after each step."""

    def __init__(self) -> None:
        self.weights, self.masks = [], []

    def step(self, loop) -> None:
        self.weights.append({n: p.detach().clone() for n, p in loop.plain.named_parameters()})
        names = {id(p): n for n, p in loop.plain.named_parameters()}
        self.masks.append({names[id(p)]: moves.clone() for p, (moves, _) in loop.guard.drawn.items()})


def watched(tuner, steps=4, **more):
    model = battery.wrapped(tuner, LLAMA)
    run = battery.loop(tuner, LLAMA, model, steps, **more)
    watch = Watch()
    run.callbacks.append(watch)
    run.fit()
    return watch


def test_outside_the_child_nothing_moves_in_a_step() -> None:
    """Not by weight decay, and not by the momentum of earlier steps; inside it everything that has a gradient does."""
    watch = watched(CHILD(share=0.3), weight_decay=0.5)
    before = {n: p.detach() for n, p in LLAMA.base().named_parameters()}
    for weights, masks in zip(watch.weights, watch.masks, strict=True):
        for name, moves in masks.items():
            assert torch.equal(weights[name][~moves], before[name][~moves]), name
            assert not torch.equal(weights[name], before[name]), name
        before = weights
    first, second = (torch.cat([m.flatten() for m in masks.values()]) for masks in watch.masks[:2])
    assert 0.28 < float(first.double().mean()) < 0.32
    assert 0.07 < float((first & second).double().mean()) < 0.11  # drawn independently


def test_the_draw_does_not_depend_on_how_a_step_is_split() -> None:
    whole = watched(CHILD(), per_device_train_batch_size=4)
    split = watched(CHILD(), per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for a, b in zip(whole.masks, split.masks, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    for name, tensor in whole.weights[-1].items():
        assert torch.allclose(tensor, split.weights[-1][name], atol=1e-4), name


def test_a_share_of_one_is_full_fine_tuning() -> None:
    full = catalog.load("tuners", "full")()
    found = []
    for tuner in (CHILD(share=1.0), full):
        model = battery.wrapped(tuner, LLAMA)
        battery.loop(tuner, LLAMA, model, 3).fit()
        found.append(model.state_dict())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[1])


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.label)
def test_a_child_that_the_task_chose(world) -> None:
    """As many elements as the share says, chosen once; the rest is bit-identical; a class head moves as a whole."""
    tuner = CHILD(variant="task_driven", share=0.05, rows=4)
    model = battery.wrapped(tuner, world)
    run = battery.loop(tuner, world, model, 3, weight_decay=0.5)
    run.fit()
    assert run.selection.count(model, heads=False) == tuner.parameter_count(world.base())
    base = world.base()
    for name, parameter in model.named_parameters():
        before = base.get_parameter(name)
        if name in run.selection.entries:
            still = torch.ones(parameter.numel(), dtype=torch.bool)
            still[run.selection.entries[name]] = False
            assert torch.equal(parameter.flatten()[still], before.flatten()[still]), name
        elif in_task_head(name):
            assert not torch.equal(parameter, before)
        else:
            assert torch.equal(parameter, before), name


@pytest.mark.parametrize(("options", "message"), [({"share": 0.0}, r"tuner\.share"), ({"rows": 0}, r"tuner\.rows")])
def test_mistakes_are_errors(options, message) -> None:
    with pytest.raises(LuthierError, match=message):
        CHILD(**options)
