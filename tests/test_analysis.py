"""Analyses find what was planted, and leave the model as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier
from luthier.analysis.format_gradient import FormatGradient, dealt, gradients
from luthier.checks._models import PAD, WORLDS, World
from luthier.core.batch import GroupExample, LabelledExample, SourceTargetExample, TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.tuners.full import Full


def loop_of(world: World, examples: Any = None) -> Loop:
    model = Full().wrap(world.base(), world.task, 0)
    made = Loop(model, Full(), world.objective, examples or world.examples, TrainSettings(max_steps=1), PAD)
    made.fit()
    return made


@pytest.mark.parametrize("world", [w for w in WORLDS if w.task != "masked_lm"], ids=lambda w: w.label)
def test_gradients_are_those_of_the_mean_loss_and_leave_no_trace(world: World) -> None:
    loop = loop_of(world)
    loop.plain.train()
    weights = {n: p.detach().clone() for n, p in loop.plain.named_parameters()}
    state = torch.get_rng_state()
    found = gradients(loop, world.examples)
    assert torch.equal(torch.get_rng_state(), state)
    assert loop.plain.training
    assert all(p.grad is None for p in loop.plain.parameters())
    assert all(torch.equal(p, weights[n]) for n, p in loop.plain.named_parameters())
    loop.plain.eval()
    world.loss(loop.plain).backward()
    for name, parameter in loop.plain.named_parameters():
        wanted: Tensor = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert torch.allclose(found[name], wanted, atol=1e-5), name


def test_answers_that_are_all_alike_give_cosine_one() -> None:
    """Dealing out equal answers changes nothing; where answers differ the cosine is below one."""
    world = WORLDS[0]
    alike = [TextExample(i, [*e.ids[:2], 9, 8], [False, False, True, True]) for i, e in enumerate(world.examples)]
    table = FormatGradient().table(loop_of(world, alike))
    assert table["all"] == pytest.approx(1.0)
    assert len(table) > 5
    assert FormatGradient().table(loop_of(world))["all"] < 0.99


def test_answers_are_dealt_out_and_inputs_stay() -> None:
    rows = [TextExample(i, [1, 20 + i, 30 + i, 2], [False, False, True, True]) for i in range(6)]
    found = dealt(rows, random.Random(0))
    assert [e.ids[:2] for e in found] == [e.ids[:2] for e in rows]
    assert sorted(e.ids[2] for e in found) == [30 + i for i in range(6)]
    assert [e.ids[2] for e in found] != [e.ids[2] for e in rows]
    pairs = dealt([SourceTargetExample(i, [i], [i]) for i in range(6)], random.Random(0))
    assert [e.ids for e in pairs] == [[i] for i in range(6)]
    assert sorted(e.target[0] for e in pairs) == list(range(6))
    assert sorted(e.label for e in dealt([LabelledExample(i, [i], i) for i in range(6)], random.Random(0))) == list(
        range(6)
    )
    with pytest.raises(LuthierError, match="several answers"):
        dealt([GroupExample(0, [1], [[2], [3]])] * 2, random.Random(0))


def test_in_a_run(recipe: dict[str, Any]) -> None:
    """`analysis: NAME` looks before the first step, on the way and after the last; resuming looks at the same steps."""
    recipe["analysis"] = {"name": "format_gradient", "rows": 8, "every": 3}
    done = luthier.run(recipe, quiet=True)
    told = json.loads((Path(done.folder) / "results.json").read_text())["analysis"]
    assert [r["step"] for r in told] == [0, 3, 6, 8]
    assert all(-1 <= v <= 1 for r in told for v in r["format_gradient"].values())
    assert "q_proj" in told[0]["format_gradient"]
