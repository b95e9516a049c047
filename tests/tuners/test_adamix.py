"""Draws belong to steps, not to passes; what experts share; what is served."""

from typing import Any

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core.adapt import folded
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import LuthierError
from luthier.tuners.adamix import AdaMix, Half

EXAMPLE, WORLD = AdaMix.example(), WORLDS[0]


class Draws(LoopCallback):
    def __init__(self) -> None:
        self.seen: list[list[int | None]] = []

    def step(self, loop: Loop) -> None:
        self.seen.append([m.drawn for m in loop.plain.modules() if isinstance(m, Half)])


def fitted(size: int, accumulation: int) -> tuple[Any, list[list[int | None]]]:
    model, draws = battery.wrapped(EXAMPLE, WORLD), Draws()
    loop = battery.loop(
        EXAMPLE, WORLD, model, 6, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        adam_epsilon=1e-4,
    )  # fmt: skip
    loop.callbacks.append(draws)
    loop.fit()
    return model, draws.seen


def test_one_draw_a_step_however_it_is_split() -> None:
    (whole, one), (split, other) = fitted(4, 1), fitted(1, 4)
    assert one == other
    assert len({tuple(d) for d in one}) > 1, "steps draw anew"
    assert len({d for step in one for d in step}) > 1
    for name, parameter in battery.trainable(whole).items():
        torch.testing.assert_close(battery.trainable(split)[name], parameter, atol=1e-5, rtol=1e-4)


def test_only_the_drawn_expert_moves() -> None:
    model = battery.wrapped(EXAMPLE, WORLD)
    torch.manual_seed(0)
    model.train()
    halves = [m for m in model.modules() if isinstance(m, Half)]
    for half in halves:
        half.drawn = 1
        half.weight.data.normal_()
    WORLD.loss(model).backward()
    for half in halves:
        assert half.weight.grad is not None
        assert [bool(g.abs().max() > 0) for g in half.weight.grad] == [False, True, False]


@pytest.mark.parametrize("share", ["none", "up", "down"])
@pytest.mark.parametrize("check", ["identity", "count", "moves", "fold"])
def test_shared_halves_keep_the_checks(share: Any, check: str) -> None:
    tuner = AdaMix(experts=3, size=4, share=share)
    for world in (WORLDS[0], WORLDS[2]):
        getattr(battery, f"check_{check}")(tuner, world)


def test_served_as_one_adapter() -> None:
    model = battery.moved(EXAMPLE, WORLD)
    trained = sum(p.numel() for p in battery.trainable(model).values())
    served = sum(p.numel() for n, p in folded(EXAMPLE, model).named_parameters() if "adamix" in n)
    assert trained == EXAMPLE.experts * served
    assert served == AdaMix(experts=3, size=4, folded=True).parameter_count(WORLD.base())


def test_errors() -> None:
    with pytest.raises(LuthierError, match="experts is 0"):
        AdaMix(experts=0)
