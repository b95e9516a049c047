"""Data sets of code: training rows, validation rows taken from them, and test rows that training cannot have seen.

leaked  a test row whose intent is, up to case and blanks, that of a training row of *any* set: adapters trained on all sets
        together are tested on each
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier import data
from luthier.core import config
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError
from luthier.data import RowTable
from luthier.recipes._projects import PARTS, Project

VALIDATION = 0.1
"""Share of the training rows, where the recipe names none."""


def read_sets(sets: Mapping[str, Mapping[str, Any]], told: RunRecipe, intent: str) -> list[Project]:
    """Every set in its parts; `duplicates` counts the test rows that were left out. Raises ConfigError and LuthierError."""
    trained, tested = ({name: _read(name, part, one, told, intent) for name, one in sets.items()} for part in _SIDES)
    seen = {said(row[intent]) for table in trained.values() for row in table.rows}
    return [_parts(name, trained[name], tested[name], seen, told, intent) for name in sets]


_SIDES = ("train", "test")


def said(intent: Any) -> str:
    """An intent without what does not tell two apart."""
    return " ".join(str(intent).lower().split())


def _read(name: str, part: str, one: Mapping[str, Any], told: RunRecipe, intent: str) -> RowTable:
    if set(one) != set(_SIDES):
        raise config.ConfigError(f"procedure.sets.{name}: names train and test rows, not {', '.join(one) or 'nothing'}")
    own = told.data
    limit = own.limit if part == "train" else None
    table = data.read(one[part], columns=own.columns, template=own.template, limit=limit, seed=told.seed)
    for row, origin in zip(table.rows, table.origins, strict=True):
        for column in ("prompt", "completion", intent):
            if not isinstance(row.get(column), str):
                raise LuthierError(
                    f"{origin}: no text '{column}' in this row of set '{name}': map the columns with data.columns or "
                    "data.template; procedure.intent names the column of what is asked for"
                )
    return table


def _parts(name: str, train: RowTable, test: RowTable, seen: set[str], told: RunRecipe, intent: str) -> Project:
    fresh = [row for row in test.rows if said(row[intent]) not in seen]
    if not fresh:
        raise LuthierError(
            f"procedure.sets.{name}: every test row's intent is among the training rows: nothing is left"
        )
    kept, held = data.split(train, told.data.val_size or VALIDATION, seed=told.seed, group=intent, check=False)
    return Project(name, dict(zip(PARTS, (kept.rows, held.rows, fresh), strict=True)), len(test) - len(fresh))
