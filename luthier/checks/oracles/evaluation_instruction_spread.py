"""Instruction spread against a loop over tasks and wordings with the standard library alone."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np

from luthier.checks._compare import require
from luthier.core import catalog
from luthier.evaluation._family import items_of

RIGHT = {  # task -> for each row, whether each wording is answered rightly
    "sort": [(1, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 0)],
    "copy": [(1, 1, 1), (0, 1, 0)],
}
SEEN = [True, True, False]


def _rows() -> list[dict[str, Any]]:
    return [
        {"prompts": [f"{task} {i} wording {m}" for m in range(3)], "answer": "yes", "task": task, "seen": SEEN}
        for task, told in RIGHT.items()
        for i in range(len(told))
    ]


def _say(prompts: list[str], *more: Any) -> list[str]:
    told = [p.split() for p in prompts]
    return ["yes" if RIGHT[task][int(i)][int(m)] else "no" for task, i, _, m in told]


def oracle_loop() -> None:
    method = catalog.load("evaluation", "instruction_spread")()
    answers = method.ask(SimpleNamespace(generate=_say), items_of(_rows()))
    shares = {task: [statistics.fmean(r[m] for r in told) for m in range(3)] for task, told in RIGHT.items()}
    wanted = {
        "accuracy": statistics.fmean(statistics.fmean(x) for x in shares.values()),
        "spread": statistics.fmean(statistics.pstdev(x) for x in shares.values()),
        "worst": statistics.fmean(min(x) for x in shares.values()),
        "best": statistics.fmean(max(x) for x in shares.values()),
        "seen": statistics.fmean(statistics.fmean(x[:2]) for x in shares.values()),
        "unseen": statistics.fmean(x[2] for x in shares.values()),
    }
    wanted["gap"] = wanted["seen"] - wanted["unseen"]
    require(set(wanted) == set(method.table(answers)), f"metrics are {set(method.table(answers))}")
    for metric, value in wanted.items():
        found = float(method.aggregate(metric, answers)(answers.stats, np.ones((1, len(answers))))[0])
        require(abs(found - value) < 1e-12, f"{metric} is {found}, by the loop {value}")
