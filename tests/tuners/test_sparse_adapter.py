"""Sparse adapters: the budget, and what gradient scores need."""

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS
from luthier.core import catalog

SPARSE = catalog.load("tuners", "sparse_adapter")
DENSE = catalog.load("tuners", "bottleneck")
LLAMA = WORLDS[0]


def parts(model):
    return [m for n, m in model.named_modules() if n.endswith("_parts.default")]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_the_budget_is_that_of_the_dense_adapter(sparsity: float) -> None:
    """But for the biases of the wider bottleneck; a pruned adapter of the same width has as much less."""
    base = LLAMA.base()
    sites, dense = 2 * 2, DENSE(size=4).parameter_count(base)
    wide = SPARSE(size=4, sparsity=sparsity)
    assert wide.parameter_count(base) == dense + sites * (wide.bottleneck - 4)
    narrow = SPARSE(size=4, sparsity=sparsity, large=False)
    D = base.config.hidden_size
    assert narrow.parameter_count(base) == dense - sites * round(2 * sparsity * 4 * D)


@pytest.mark.parametrize("criterion", ["random", "magnitude", "snip", "fisher", "grasp"])
def test_places_are_distinct_and_chosen_by_the_criterion(criterion: str) -> None:
    tuner = SPARSE(size=4, criterion=criterion, rows=4)
    model = battery.wrapped(tuner, LLAMA)
    before = [p.down_at.clone() for p in parts(model)]
    battery.loop(tuner, LLAMA, model, 1).fit()
    for part in parts(model):
        assert len(set(part.down_at.tolist())) == len(set(part.up_at.tolist())) == tuner.kept(32)
        assert not part.trial
    looked = any(not torch.equal(a, p.down_at) for a, p in zip(before, parts(model), strict=True))
    assert looked == (criterion in ("snip", "fisher", "grasp"))


def test_pruning_leaves_the_start_the_base() -> None:
    """Scores are taken elsewhere; training begins from the base model exactly."""
    tuner = SPARSE.example()
    model = battery.wrapped(tuner, LLAMA)
    run = battery.loop(tuner, LLAMA, model, 1)
    run._select(0)
    assert torch.allclose(LLAMA.said(model), LLAMA.said(LLAMA.base()), atol=1e-6)
