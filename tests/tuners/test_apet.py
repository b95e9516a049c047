"""Arbitrary parameters: the unit tests of the card."""

import random

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, model_of
from luthier.core import catalog
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError

APET = catalog.load("tuners", "apet")
UNITS = catalog.load("tuners", "apet_units")
LLAMA = WORLDS[0]


def drawn(seed: int, budget: int = 2000, **options) -> set[tuple[str, int]]:
    selection = APET(budget=budget, level="scalars", seed=seed, **options).select(LLAMA.base(), random.Random(7))
    return {(n, int(i)) for n, at in selection.entries.items() for i in at}


def test_exactly_the_drawn_entries_move_where_they_have_a_gradient() -> None:
    """Weight decay and momentum included; entries that never had a gradient are told apart."""
    tuner = APET(budget=2000, level="scalars", seed=1)
    model, base = battery.wrapped(tuner, LLAMA), LLAMA.base()
    run = battery.loop(tuner, LLAMA, model, 4, weight_decay=0.0)
    cost = run.fit().cost
    changed = sum(int((p != base.get_parameter(n)).sum()) for n, p in model.named_parameters())
    assert cost["trainable_parameters"] == 2000
    assert changed == cost["moved_parameters"] < 2000
    inside = sum(
        int((model.get_parameter(n) != base.get_parameter(n)).view(-1)[at].sum())
        for n, at in run.selection.entries.items()
    )
    assert inside == changed


def test_one_seed_one_set_and_two_seeds_nearly_disjoint() -> None:
    assert drawn(0) == drawn(0)
    total = sum(p.numel() for p in LLAMA.base().parameters())
    overlap = len(drawn(0) & drawn(1))
    assert abs(overlap - 2000**2 / total) < 4 * (2000**2 / total) ** 0.5


def test_the_runs_seed_does_not_change_the_set() -> None:
    model = LLAMA.base()
    for tuner in (APET(budget=500, level="scalars"), APET(budget=5000, level="tensors")):
        a, b = (tuner.select(model, random.Random(s)) for s in (1, 2))
        assert a.whole == b.whole and a.entries.keys() == b.entries.keys()
        assert all(torch.equal(at, b.entries[n]) for n, at in a.entries.items())


def test_strata_are_equal_and_patterns_hold() -> None:
    names = [layer.name + "." for layer in anatomy(LLAMA.base()).layers]
    told = drawn(0, 900, stratify=True)
    assert [sum(n.startswith(layer) for n, _ in told) for layer in names] == [300, 300]
    assert all("mlp" in n for n, _ in drawn(0, 900, eligible=("mlp",)))


def test_auto_takes_tensors_where_one_fits() -> None:
    model = LLAMA.base()
    least = min(p.numel() for p in model.parameters())
    assert APET(budget=least - 1).select(model, random.Random(0)).entries
    assert APET(budget=least).select(model, random.Random(0)).whole


def test_tied_tensors_count_once() -> None:
    model = model_of("gpt2")
    total = sum(p.numel() for p in model.parameters())
    assert APET(budget=total, level="tensors").parameter_count(model) == total
    assert APET(budget=total, level="scalars").parameter_count(model) == total


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        (APET(budget=10**9), "only .* parameters are eligible"),
        (APET(budget=5, level="tensors"), "the smallest tensor"),
        (APET(eligible=("nothing",)), "matches no parameter"),
        (UNITS(budget=3), "the smallest unit has"),
    ],
)
def test_mistakes_are_errors(tuner, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        tuner.wrap(LLAMA.base(), "causal_lm")


def test_a_new_head_moves_and_is_not_counted() -> None:
    world = WORLDS[3]
    tuner = APET(budget=1000, level="scalars")
    model = battery.wrapped(tuner, world)
    cost = battery.loop(tuner, world, model, 2).fit().cost
    head = sum(p.numel() for p in model.classifier.parameters())
    assert cost["head_parameters"] == head
    assert cost["trainable_parameters"] == 1000 + head


def test_units_of_two_seeds_differ_and_fit() -> None:
    model = LLAMA.base()
    a, b = (UNITS(budget=6000, r=2, size=4, seed=s).drawn(model) for s in (0, 1))
    assert a != b
    assert max(sum(a.values()), sum(b.values())) <= 6000
