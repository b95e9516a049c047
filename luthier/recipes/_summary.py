"""All runs of a personalisation together: figures over projects, the cross-project matrix, the cost sheet.

ratio[p, q] = perplexity on the test rows of q with the delta of p / without it           means of ratios are geometric
gain        of the target metric, positive where it is better, averaged over projects
break-even  what the next unit of a cost buys over the best cheaper scheme
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError
from luthier.recipes._projects import average, of_projects, paired

INTRINSIC, ELSEWHERE = "perplexity", "on_"
"""The task of a project's own test rows, and how those of the other projects' begin."""


@dataclass(frozen=True)
class Cell:
    """One project by one scheme with one seed.

    validation  best loss on validation rows;  best_step  where it was reached
    """

    project: str
    scheme: str
    seed: int
    folder: Path
    status: str
    error: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    validation: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, project: str, place: Path, told: Mapping[str, Any]) -> Cell:
        folder = place / told["run"]
        start = (project, told["method"], told["seed"], folder, told["status"])
        if told["status"] != "done":
            return cls(*start, error=told.get("error", ""))
        losses = [(r["eval_loss"], r["step"]) for r in _state(folder)["log_history"] if "eval_loss" in r]
        best = min(losses, default=(None, None))
        return cls(*start, results=told["results"], validation=best[0], best_step=best[1])

    def value(self, side: str, task: str, metric: str) -> float | None:
        return self.results[side].get(task, {}).get(metric, {}).get("value")

    @property
    def cost(self) -> dict[str, Any]:
        """The run's costs, and those up to its best step."""
        cost = self.results["cost"]
        share = (self.best_step or cost["steps"]) / max(1, cost["steps"])
        return {
            **cost, "best_step": self.best_step, "flops_to_best": cost["train_flops"] * share,
            "seconds_to_best": cost["train_seconds"] * share,
            "step_flops": cost["forward_flops"] + cost["backward_flops"],
        }  # fmt: skip

    def fitted(self) -> Any:
        """What the run's loop told."""
        from luthier.core.loop import Fitted

        state, cost = _state(self.folder), self.results["cost"]
        losses = [r["loss"] for r in state["log_history"] if "loss" in r]
        last = losses[-1] if losses else math.nan
        steps, seconds, best = cost["steps"], cost["train_seconds"], state["best_model_checkpoint"]
        return Fitted(steps, seconds, cost["tokens"], last, cost, best, None, state["log_history"])


def _state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


COSTS = (
    "trainable_parameters", "total_parameters", "stored_bytes", "stored_parameters", "train_seconds", "train_flops", "steps",
    "best_step", "flops_to_best", "seconds_to_best", "step_flops", "peak_memory_bytes",
)  # fmt: skip


@dataclass
class Summary:
    """All cells together. A scheme counts where it ended for every project."""

    projects: list[str]
    names: list[str]
    cells: list[Cell]

    def cells_of(self, project: str, scheme: str) -> list[Cell]:
        mine = (c for c in self.cells if (c.project, c.scheme) == (project, scheme))
        return [c for c in mine if c.status == "done"]

    @property
    def schemes(self) -> list[str]:
        whole = [s for s in self.names if all(self.cells_of(p, s) for p in self.projects)]
        if not whole:
            failed = next((c for c in self.cells if c.status != "done"), None)
            why = f", the first with {failed.project}, {failed.scheme}: {failed.error}" if failed else ""
            raise LuthierError(f"personalize: no scheme ended for every project{why}")
        return whole

    def chosen(self) -> str:
        """The scheme with the lowest validation loss, averaged over projects and seeds; test rows have no say."""
        loss = {s: average([c.validation for c in self.cells if c.scheme == s]) for s in self.schemes}
        return min(loss, key=lambda s: math.inf if loss[s] is None else loss[s])  # type: ignore[arg-type,return-value]

    def values(self, scheme: str, side: str, task: str, metric: str) -> list[float | None]:
        """The metric of each project, averaged over seeds."""
        return [average([c.value(side, task, metric) for c in self.cells_of(p, scheme)]) for p in self.projects]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """What every project was asked, without the other projects' rows: task -> title, group, metrics."""
        first = self.cells_of(self.projects[0], self.schemes[0])[0].results
        own = {t: about for t, about in first["tasks"].items() if not t.startswith(ELSEWHERE)}
        return {
            t: {
                "title": about["title"], "group": about["group"], "metric": about["metric"],
                "metrics": {m: (v["higher_is_better"], v.get("unit", "")) for m, v in first["tuned"][t].items()},
            }
            for t, about in own.items()
        }  # fmt: skip

    def target(self) -> dict[str, Any]:
        """The measure that schemes are compared by: the first target task's main metric."""
        tasks = self.tasks()
        task = next((t for t, about in tasks.items() if about["group"] == "target"), next(iter(tasks)))
        about = tasks[task]
        up = about["metrics"][about["metric"]][0]
        return {"task": task, "metric": about["metric"], "higher_is_better": up, "title": about["title"]}

    def results(self, scheme: str) -> dict[str, Any]:
        """Means over projects, in the form of a single run's results."""
        out: dict[str, Any] = {"tasks": {}, "base": {}, "tuned": {}, "paired": {}}
        for task, about in self.tasks().items():
            out["tasks"][task] = {k: about[k] for k in ("title", "group", "metric")}
            for side in ("base", "tuned", "paired"):
                out[side][task] = {}
            for metric, (up, unit) in about["metrics"].items():
                base, tuned = (self.values(scheme, side, task, metric) for side in ("base", "tuned"))
                out["base"][task][metric] = of_projects(base, up, unit)
                out["tuned"][task][metric] = of_projects(tuned, up, unit)
                out["paired"][task][metric] = paired(base, tuned, up)
        cost = [self.cells_of(p, scheme)[0].cost for p in self.projects]
        out["cost"] = {**self.results_cost(cost), "scheme": scheme, "projects": len(self.projects)}
        return out

    def results_cost(self, cost: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Of a model: the same for each project. Of all projects together: what was spent and what is kept."""
        once = ("trainable_parameters", "total_parameters", "served_parameters", "step_flops", "step_seconds")
        summed = (
            "stored_bytes",
            "stored_parameters",
            "train_seconds",
            "train_flops",
            "flops_to_best",
            "steps",
            "tokens",
        )
        return {
            **{k: cost[0].get(k) for k in once}, **{k: sum(c[k] for c in cost) for k in summed},
            "peak_memory_bytes": max(c["peak_memory_bytes"] for c in cost),
        }  # fmt: skip

    def table(self) -> list[dict[str, Any]]:
        """Every metric of every scheme beside the base, project by project."""
        out = []
        for task, about in self.tasks().items():
            for metric, (up, unit) in about["metrics"].items():
                for scheme in self.schemes:
                    base, tuned = (self.values(scheme, side, task, metric) for side in ("base", "tuned"))
                    out.append({
                        "task": task, "metric": metric, "scheme": scheme, "higher_is_better": up, "unit": unit,
                        "base": base, "tuned": tuned, **paired(base, tuned, up),
                    })  # fmt: skip
        return out

    def pairs(self) -> list[dict[str, Any]]:
        """Scheme against scheme on the target; the effect is positive where the first is better."""
        about, out = self.target(), []
        up = about["higher_is_better"]
        for i, a in enumerate(self.schemes):
            for b in self.schemes[i + 1 :]:
                one, two = (self.values(s, "tuned", about["task"], about["metric"]) for s in (a, b))
                out.append({"a": a, "b": b, **paired(two, one, up)})
        return out

    def matrix(self, scheme: str) -> list[list[float | None]]:
        """[project whose delta it is][project whose test rows are read]: perplexity with the delta / without."""
        return [[self.ratio(scheme, p, q) for q in self.projects] for p in self.projects]

    def ratio(self, scheme: str, delta: str, rows: str) -> float | None:
        task = INTRINSIC if delta == rows else f"{ELSEWHERE}{rows}"
        pairs = [tuple(c.value(s, task, INTRINSIC) for s in ("tuned", "base")) for c in self.cells_of(delta, scheme)]
        return average([a / b if a is not None and b else None for a, b in pairs])

    def gains(self, scheme: str) -> list[float | None]:
        """Of the target, by project, positive where it is better."""
        about = self.target()
        base, tuned = (self.values(scheme, s, about["task"], about["metric"]) for s in ("base", "tuned"))
        sign = 1 if about["higher_is_better"] else -1
        return [None if a is None or b is None else sign * (b - a) for a, b in zip(base, tuned, strict=True)]

    def costs(self) -> list[dict[str, Any]]:
        """The deployment cost sheet: means over projects and seeds, the gain, and what a unit of cost buys."""
        out = []
        for scheme in self.schemes:
            cost = [c.cost for p in self.projects for c in self.cells_of(p, scheme)]
            row: dict[str, Any] = {k: average([c.get(k) for c in cost]) for k in COSTS}
            own = [self.ratio(scheme, p, p) for p in self.projects]
            others = [self.ratio(scheme, p, q) for p in self.projects for q in self.projects if p != q]
            gain = average(self.gains(scheme))
            row |= {
                "scheme": scheme, "gain": gain, "own_ratio": _geometric(own),
                "other_ratio": _geometric(others), "gain_per_pflop": _per(gain, row["flops_to_best"], 1e15),
                "gain_per_mib": _per(gain, row["stored_bytes"], 2.0**20),
            }  # fmt: skip
            out.append(row)
        for key in ("flops_to_best", "stored_bytes"):
            _break_even(out, key)
        return out

    def told(self, chosen: str, first: str) -> dict[str, Any]:
        about = self.target()
        return {
            "schemes": self.schemes, "target": about,
            "chosen": {"scheme": chosen, "by": "mean validation loss", "project": first},
            "cells": [
                {
                    "project": c.project, "scheme": c.scheme, "seed": c.seed, "status": c.status, "error": c.error,
                    "run": "/".join(("projects", *c.folder.parts[-2:])), "validation": c.validation, "best_step": c.best_step,
                    **({"target": c.value("tuned", about["task"], about["metric"])} if c.status == "done" else {}),
                }
                for c in self.cells
            ],
            "table": self.table(), "pairs": self.pairs(),
            "matrix": {s: self.matrix(s) for s in self.schemes}, "costs": self.costs(),
        }  # fmt: skip


def _geometric(ratios: Sequence[float | None]) -> float | None:
    """The mean of ratios: halved and doubled are no change."""
    mean = average([math.log(r) for r in ratios if r])
    return None if mean is None else math.exp(mean)


def _per(gain: float | None, cost: float | None, unit: float) -> float | None:
    return gain * unit / cost if gain is not None and cost else None


def _break_even(rows: Sequence[dict[str, Any]], key: str) -> None:
    """What the next unit of a cost buys: over the cheaper schemes, only those that gain more are on the way up.

    `<key>_step` is (gain more than the best cheaper scheme) / (cost more than it): a user to whom a unit of gain is worth less
    than the unit of cost should stay with that scheme. Undefined for schemes that a cheaper one beats.
    """
    best: dict[str, Any] | None = None
    for row in sorted(rows, key=lambda r: (r[key] or 0.0, -(r["gain"] or 0.0))):
        row[f"{key}_step"] = None
        if row["gain"] is None or (best is not None and row["gain"] <= best["gain"]):
            continue
        more = row[key] - (best[key] if best else 0.0)
        row[f"{key}_step"] = (row["gain"] - (best["gain"] if best else 0.0)) / more if more else None
        best = row
