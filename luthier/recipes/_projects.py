"""Rows of many projects: each project split by file without near-duplicates, and figures compared project by project.

near-duplicate  prompt and completion are equal once names and literals are placeholders: all but the first go
split           whole files to train, validation or test
paired          P projects, one difference each:  Wilcoxon's signed-rank test and its effect size
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier import data
from luthier.core import runs
from luthier.core.method import LuthierError
from luthier.data import RowTable
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._code import fingerprint
from luthier.evaluation._family import weighted_mean

PARTS = ("train", "validation", "test")
Row = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Project:
    """One project's rows by part; `duplicates` were left out."""

    name: str
    parts: Mapping[str, list[Row]]
    duplicates: int

    @property
    def folder(self) -> str:
        return folder_name(self.name)

    def write(self, folder: Path) -> dict[str, Path]:
        """A file of rows a part."""
        folder.mkdir(parents=True, exist_ok=True)
        places = {part: folder / f"{part}.jsonl" for part in self.parts}
        for part, place in places.items():
            runs.write_lines(place, self.parts[part])
        return places


def folder_name(project: str) -> str:
    """A project's name as one part of a path."""
    return re.sub(r"[^\w.-]+", "_", project).strip(".") or "_"


def by_project(table: RowTable, column: str) -> dict[str, RowTable]:
    """The rows of each project, in the order in which projects first appear."""
    at: dict[str, list[int]] = {}
    for i, (row, origin) in enumerate(zip(table.rows, table.origins, strict=True)):
        if row.get(column) is None:
            raise LuthierError(
                f"{origin}: no '{column}' in this row: procedure.project names the column of the project"
            )
        at.setdefault(str(row[column]), []).append(i)
    folders = [folder_name(name) for name in at]
    if len(set(folders)) < len(folders):
        raise LuthierError(f"data: two projects have the same folder name: {', '.join(sorted(at))}")
    return {name: table.take(rows) for name, rows in at.items()}


def without_duplicates(table: RowTable) -> RowTable:
    """The first of every set of rows that are equal when abstracted."""
    first: dict[str, int] = {}
    for i, (row, origin) in enumerate(zip(table.rows, table.origins, strict=True)):
        prompt, completion = row.get("prompt"), row.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise LuthierError(f"{origin}: prompt and completion must be texts: map the columns with data.columns")
        first.setdefault(fingerprint(f"{prompt}\n{completion}"), i)
    return table.take(list(first.values()))


def split_project(name: str, table: RowTable, file: str, shares: tuple[float, float], seed: int) -> Project:
    """`shares` of validation and test rows, each of whole files; `file` is the column."""
    kept = without_duplicates(table)
    groups = {str(row.get(file)) for row in kept.rows}
    if len(groups) < len(PARTS):
        raise LuthierError(
            f"project '{name}' has rows of {len(groups)} files ('{file}'): at least 3 are needed, one for each part"
        )
    validation, test = shares
    try:
        rest, tested = data.split(kept, test, seed=seed, group=file, check=False)
        train, held = data.split(rest, validation / (1 - test), seed=seed, group=file, check=False)
    except LuthierError as error:
        raise LuthierError(f"project '{name}': {error}") from None
    parts = dict(zip(PARTS, (train.rows, held.rows, tested.rows), strict=True))
    return Project(name, parts, len(table) - len(kept))


# ----------------------------------------------------------------------------------------------------- figures


def of_projects(values: Sequence[float | None], up: bool, unit: str = "") -> dict[str, Any]:
    """Mean over projects with its 95% interval, in the form of a task's metric."""
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return {"value": None, "low": None, "high": None, "n": 0, "higher_is_better": up}
    low, high = statistics.bootstrap(_mean, {"v": known})
    out = {"value": float(known.mean()), "low": low, "high": high, "n": len(known), "higher_is_better": up}
    return {**out, "unit": unit} if unit else out


def paired(base: Sequence[float | None], tuned: Sequence[float | None], up: bool) -> dict[str, Any]:
    """What tuning did, project by project; `effect` is positive where it is for the better."""
    both = [(a, b) for a, b in zip(base, tuned, strict=True) if a is not None and b is not None]
    if not both:
        return {"difference": None, "low": None, "high": None, "p": None, "n": 0}
    a, b = np.array(both).T
    low, high = statistics.bootstrap_difference(_mean, {"v": a}, {"v": b})
    p, effect = statistics.wilcoxon(b - a)
    effect = effect if up else -effect
    return {
        "difference": float((b - a).mean()), "low": low, "high": high, "p": p, "n": len(both), "effect": effect,
        "test": f"Wilcoxon signed-rank test over {len(both)} projects",
        "verdict": "same" if p > 0.05 else "better" if effect > 0 else "worse",
    }  # fmt: skip


def _mean(stats: Any, weights: Any) -> Any:
    return weighted_mean(stats["v"], weights)


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is known."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(known) / len(known) if known else None
