"""IPO against a float64 loop, and against trl's DPOTrainer with its `ipo` loss (means over tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from luthier.checks._compare import close
from luthier.checks.oracles import _pairs
from luthier.core import catalog

_NAME = __name__.rsplit("_", 1)[-1]
_TAU = 0.1


def _loss(tau: float, mean: bool, p: _pairs.Pair) -> Tensor:
    n, m = (p.n_chosen, p.n_rejected) if mean else (1, 1)
    h = p.chosen / n - p.ref_chosen / n - p.rejected / m + p.ref_rejected / m
    return h**2 - h / tau + 1 / (4 * tau**2)


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    return _pairs.summed(lambda p: _loss(objective.beta, objective.reduction == "mean", p), examples, policy, reference)


def start(examples: Sequence[Any], outputs: int) -> float:
    return 1 / (4 * _TAU**2)


def oracle_trl() -> None:
    world = _pairs.pair_world()
    objective = catalog.load("objectives", _NAME).example()
    for tau in (0.1, 0.5):
        wanted = _pairs.trl_dpo(world.examples, world, beta=tau, loss_type=["ipo"])
        found = _pairs.ours(replace(objective, beta=tau), world.examples, world)
        close(found, wanted, f"loss and trl's at tau {tau}")


def oracle_sums() -> None:
    """The equation as the paper has it, with sums, on the same pairs."""
    world = _pairs.pair_world()
    objective = replace(catalog.load("objectives", _NAME).example(), reduction="sum")
    from luthier.checks.objectives import Plain

    total, n = _pairs.summed(
        lambda p: _loss(objective.beta, False, p),
        world.examples,
        Plain(world.model()),
        Plain(world.model(reference=True)),
    )
    close(_pairs.ours(objective, world.examples, world), (total / n).detach(), "loss with sums and by the equation")
