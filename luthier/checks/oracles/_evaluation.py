"""What oracles of scorers share: answers of a puppet that is right about two times in three."""

from __future__ import annotations

from typing import Any

import numpy as np

from luthier.checks import evaluation
from luthier.core import catalog


def method(file_name: str, **options: Any) -> Any:
    found = catalog.load("evaluation", file_name.rsplit("evaluation_", 1)[-1]).example()
    return type(found)(**{**vars(found), **options})


def answered(scorer: Any, world: int = 0, n: int = 150) -> tuple[Any, np.ndarray, np.ndarray]:
    """Answers of the scorer, what was said (n,) and what is right (n,), as indices of choices."""
    at = evaluation.worlds(scorer)[world]
    items = at.items(scorer, n)[:n]
    rng = np.random.default_rng(8)
    truth = np.array([int(i.label) for i in items])
    said = np.where(rng.random(n) < 0.6, truth, rng.integers(0, 3, n))
    by_id = {item.id: int(s) for item, s in zip(items, said)}
    return scorer.ask(evaluation.Puppet(at, items, lambda i: by_id[i.id]), items), said, truth


def equal(found: float, wanted: float, what: str) -> None:
    evaluation.require(abs(found - wanted) < 1e-9 * max(1.0, abs(wanted)), f"{what}: {found}, by the oracle {wanted}")
