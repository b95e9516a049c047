"""`luthier compare`: several methods on the same model, data, seeds and items, in one table and one picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luthier
from luthier.core import catalog, config, runs
from luthier.core.config import Recipe
from luthier.core.loop import Interrupted
from luthier.core.method import LuthierError
from luthier.verbs.run import RunResult, measured_tasks, run


@dataclass
class Comparison:
    """A finished comparison: its folder and what compare.json holds."""

    folder: Path
    told: dict[str, Any]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def cells(self, method: str) -> list[dict[str, Any]]:
        return [c for c in self.told["cells"] if c["method"] == method and c["status"] == "done"]

    def values(self, method: str, task: str, metric: str) -> list[float]:
        """The metric of each seed's tuned model."""
        return [c["results"]["tuned"][task][metric]["value"] for c in self.cells(method)]

    def table(self) -> list[dict[str, Any]]:
        """One row a method: mean and sd over seeds of the target, mean of every other task, parameters, FLOPs."""
        target = self.told["target"]
        rows = []
        for method in self.told["methods"]:
            done = self.cells(method)
            if not done:
                failed = [c for c in self.told["cells"] if c["method"] == method]
                rows.append({"method": method, "failed": failed[0].get("error", "not run") if failed else "not run"})
                continue
            row: dict[str, Any] = {"method": method, "seeds": len(done)}
            for task, about in done[0]["results"]["tasks"].items():
                row[task] = _mean_sd(self.values(method, task, about["metric"]))
            row["trained"] = done[0]["results"]["cost"]["trainable_parameters"]
            row["flops"] = statistics.fmean(c["results"]["cost"]["train_flops"] for c in done)
            rows.append(row)
        if target:
            sign = -1 if target["higher_is_better"] else 1
            rows.sort(key=lambda r: (("failed" in r), sign * r[target["task"]][0] if target["task"] in r else 0.0))
        return rows

    def table_text(self) -> str:
        """The table as text: the same for the same seeds (times are in the report)."""
        rows = self.table()
        tasks = [k for r in rows for k, v in r.items() if isinstance(v, tuple)]
        tasks = list(dict.fromkeys(tasks))
        head = ["method", *tasks, "trained", "FLOPs"]
        body = []
        for r in rows:
            if "failed" in r:
                body.append([r["method"], f"failed: {r['failed']}"] + [""] * (len(head) - 2))
                continue
            cells = [_cell(*r[t]) for t in tasks]
            body.append([r["method"], *cells, f"{r['trained']:,}", f"{r['flops']:.2e}"])
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
        return "\n".join(lines)


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    values = [math.nan if v is None else v for v in values]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _cell(mean: float, sd: float) -> str:
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ±{sd:.3f}"


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    methods: Sequence[str] = (),
    seeds: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    quiet: bool = False,
    output_dir: str | Path | None = None,
    callbacks: Sequence[Any] = (),
) -> Comparison:
    """Run each method for each seed and write compare.json and report.html.

    methods  names of tuners, objectives, decoders or procedures, "tuner+objective", or names under `compare.methods` of the recipe
    seeds    how many, counted from the recipe's seed
    resume   keep cells that are done
    callbacks  as in `run`, for every cell

    A cell that fails is shown as failed; the others go on. Raises ConfigError for names that nothing answers to.
    """
    told = config.recipe(recipe, overrides)
    methods = list(methods) or list(told.compare.methods)
    if not methods:
        raise config.ConfigError("compare: no methods: --methods full,hft,lora or compare.methods in the recipe")
    changes = {m: _changes(m, told) for m in methods}
    folder = Path(output_dir or told.output_dir or f"runs/{told.name or 'compare'}")
    if (folder / "compare.json").exists() and not resume:
        raise LuthierError(
            f"{folder}: a comparison is here already: --resume keeps its cells, or choose another output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    plan = [
        (m, s, config.recipe(told, {**changes[m], "seed": s, "output_dir": str(folder / f"{m}-seed{s}"), "name": m}))
        for s in range(told.seed, told.seed + (seeds or told.compare.seeds))
        for m in methods
    ]
    tasks = measured_tasks(told)
    out: dict[str, Any] = _header(told, folder, methods, plan, tasks)
    bases: dict[str, Any] = {}
    try:
        for method, seed, one in plan:
            out["cells"].append(_cell_of(method, seed, one, folder, bases, resume, quiet, callbacks))
            runs.write_json(folder / "compare.json", out)
    except (Interrupted, KeyboardInterrupt):
        out["status"] = "interrupted"
        runs.write_json(folder / "compare.json", out)
        raise
    out["status"] = "done"
    out["manifest"]["finished"] = runs.now()
    done = [c for c in out["cells"] if c["status"] == "done"]
    if done and not out["target"]:
        out["target"] = _target(done[0]["results"])
    runs.write_json(folder / "compare.json", out)
    from luthier import report

    report.write_compare_report(folder)
    if not done:
        raise LuthierError(f"{folder}: every cell failed, the first with {out['cells'][0]['error']}")
    return Comparison(folder, out)


def _changes(name: str, told: Recipe) -> dict[str, Any]:
    """What a method's name changes in the recipe."""
    own = told.compare.methods.get(name)
    parts = name.split("+")
    out: dict[str, Any] = {}
    for part in parts:
        for axis, key in config.SECTIONS:
            if any(f.stem == part for f in catalog._files(axis)):
                if (getattr(told, key) or {}).get("name") != part:
                    out[key] = {"name": part}
                break
        else:
            if own is None:
                valid = [e.name for axis, _ in config.SECTIONS for e in catalog.entries(axis)]
                raise config.ConfigError(f"compare: {catalog._unknown('method', part, valid)}")
    return {**out, **(own or {})}


def _header(told: Recipe, folder: Path, methods: list[str], plan: list[Any], tasks: list[Any]) -> dict[str, Any]:
    return {
        "kind": "compare",
        "name": told.name or folder.name,
        "status": "running",
        "recipe": told.resolved(),
        "methods": methods,
        "seeds": sorted({s for _, s, _ in plan}),
        "target": None,
        "retention": {"tasks": [t.name for t in tasks if t.group == "retention"]},
        "cells": [],
        "manifest": {
            "luthier": luthier.__version__,
            "started": runs.now(),
            "finished": None,
            "command": runs.command_line(),
            "versions": runs.versions(),
            "device": runs.device(),
            "git": runs.git(),
        },
    }


def _target(results: dict[str, Any]) -> dict[str, Any] | None:
    """The first task that the tuning was for."""
    for task, about in results["tasks"].items():
        if about["group"] == "target":
            up = results["tuned"][task][about["metric"]]["higher_is_better"]
            return {"task": task, "metric": about["metric"], "higher_is_better": up, "title": about["title"]}
    return None


def _cell_of(
    method: str,
    seed: int,
    one: Recipe,
    folder: Path,
    bases: dict[str, Any],
    resume: bool,
    quiet: bool,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    path = Path(one.output_dir or "")
    cell = {"method": method, "seed": seed, "run": path.name}
    kept = _kept(path, one) if resume else None
    if kept is not None:
        return {**cell, "status": "done", "results": kept}
    try:
        done = _run(one, bases, resume, quiet, callbacks)
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        return {**cell, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**cell, "status": "done", "results": done.results}


def _run(one: Recipe, bases: dict[str, Any], resume: bool, quiet: bool, callbacks: Sequence[Any] = ()) -> RunResult:
    """One cell. The untuned model is asked once for all cells that start from the same one."""
    unfinished = resume and (Path(one.output_dir or "") / "run.json").exists()
    return run(one, quiet=quiet, bases=bases, resume=True if unfinished else None, callbacks=callbacks)


def _kept(path: Path, one: Recipe) -> dict[str, Any] | None:
    """Results of a cell that is done and was run by the same recipe."""
    folder = runs.RunFolder(path)
    if not (path / "results.json").exists():
        return None
    told = folder.manifest
    if told["status"] != "done" or told["recipe"] != one.resolved():
        return None
    import json

    return json.loads((path / "results.json").read_text())
