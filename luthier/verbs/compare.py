"""`luthier compare`: several methods on the same model, data, seeds and items, in one table and one picture."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core import catalog, config, runs
from luthier.core.config import Recipe
from luthier.core.loop import Interrupted
from luthier.core.method import LuthierError
from luthier.report.evidence import undominated
from luthier.verbs._cell import attempt, attempt_apart
from luthier.verbs.run import measured_tasks

FRONT = ("score", "trained parameters", "peak memory")
"""What the front of a comparison is the front of."""


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
                why = f"{failed[0]['status']}: {failed[0]['error']}" if failed else "not run"
                rows.append({"method": method, "failed": why})
                continue
            row: dict[str, Any] = {"method": method, "seeds": len(done)}
            for task, about in done[0]["results"]["tasks"].items():
                row[task] = _mean_sd(self.values(method, task, about["metric"]))
            if method in self.told["pilots"]:
                row["rate"] = self.told["pilots"][method]["rate"]
            row["trained"] = done[0]["results"]["cost"]["trainable_parameters"]
            row["flops"] = statistics.fmean(c["results"]["cost"]["train_flops"] for c in done)
            rows.append(row)
        if target:
            sign = -1 if target["higher_is_better"] else 1
            rows.sort(key=lambda r: (("failed" in r), sign * r[target["task"]][0] if target["task"] in r else 0.0))
        return rows

    def front(self) -> list[str]:
        """Methods that no other one equals in score, trained parameters and peak memory and beats in one, by the means."""
        target, names, points = self.told["target"], [], []
        for method in self.told["methods"] if target else ():
            if costs := [c["results"]["cost"] for c in self.cells(method)]:
                score = _mean_sd(self.values(method, target["task"], target["metric"]))[0]
                memory = statistics.fmean(c["peak_memory_bytes"] for c in costs)
                names.append(method)
                points.append(
                    (-score if target["higher_is_better"] else score, costs[0]["trainable_parameters"], memory)
                )
        return [names[i] for i in undominated(points)]

    def table_text(self) -> str:
        """The table as text: the same for the same seeds (times are in the report)."""
        rows = self.table()
        tasks = [k for r in rows for k, v in r.items() if isinstance(v, tuple)]
        tasks = list(dict.fromkeys(tasks))
        rates = ["rate"] if any("rate" in r for r in rows) else []
        head = ["method", *tasks, *rates, "trained", "FLOPs"]
        body = []
        for r in rows:
            if "failed" in r:
                body.append([r["method"], *[""] * (len(head) - 2), r["failed"]])
                continue
            cells = [_cell(*r[t]) for t in tasks] + [f"{r['rate']:g}" if "rate" in r else "" for _ in rates]
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

    methods    names of tuners, objectives, decoders or procedures, "tuner+objective", or names under `compare.methods` of
               the recipe
    seeds      how many, counted from the recipe's seed
    resume     keep cells that are done
    callbacks  of every run, as in `luthier.run`

    With `compare.pilot.rates` each method first runs once at every rate. A cell that fails is shown as failed, a method
    that refuses the model or data as refused; the others go on. Raises ConfigError for names that nothing answers to.
    """
    told = config.recipe(recipe, overrides)
    methods = list(methods) or list(told.compare.methods)
    if not methods:
        raise config.ConfigError("compare: no methods: --methods full,hft,lora or compare.methods in the recipe")
    if told.compare.fresh and callbacks:
        raise LuthierError(
            "compare: callbacks cannot follow runs into processes of their own: set compare.fresh: false"
        )
    changes = {m: changes_of(m, told) for m in methods}
    folder = Path(output_dir or told.output_dir or f"runs/{told.name or 'compare'}")
    must_be_new(folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = list(range(told.seed, told.seed + (seeds or told.compare.seeds)))
    work = _Work(told, folder, changes, resume, quiet, callbacks)
    out: dict[str, Any] = _header(told, folder, methods, ordered, measured_tasks(told))
    with told_if_stopped(folder / "compare.json", out):
        for method in methods:
            if work.rates_to_try(method):
                out["pilots"][method] = work.pilot(method)
                runs.write_json(folder / "compare.json", out)
        for seed in ordered:
            for method in methods:
                out["cells"].append(work.cell(method, seed, out["pilots"].get(method)))
                runs.write_json(folder / "compare.json", out)
    out["status"] = "done"
    out["manifest"]["finished"] = runs.now()
    done = [c for c in out["cells"] if c["status"] == "done"]
    if done and not out["target"]:
        out["target"] = _target(done[0]["results"])
    found = Comparison(folder, out)
    out["front"] = {"of": list(FRONT), "methods": found.front()}
    runs.write_json(folder / "compare.json", out)
    from luthier import report

    report.write_compare_report(folder)
    if not done:
        raise LuthierError(f"{folder}: every cell failed, the first with {out['cells'][0]['error']}")
    return found


@contextmanager
def told_if_stopped(file: Path, told: Mapping[str, Any]) -> Iterator[None]:
    """What a comparison of several parts has told so far stays in `file`, with how it ended, where it is stopped or fails."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        runs.write_json(file, {**told, "status": "interrupted"})
        raise
    except Exception as error:
        runs.write_json(file, {**told, "status": "failed", "error": str(error)})
        raise


def must_be_new(folder: Path, resume: bool) -> None:
    """Raises LuthierError where a comparison is in `folder` that is not to be gone on with."""
    if (folder / "compare.json").exists() and not resume:
        raise LuthierError(
            f"{folder}: a comparison is here already: --resume keeps its cells, or choose another output_dir"
        )


def changes_of(name: str, told: Recipe) -> dict[str, Any]:
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


def _header(told: Recipe, folder: Path, methods: list[str], seeds: list[int], tasks: list[Any]) -> dict[str, Any]:
    return {
        "kind": "compare",
        "name": told.name or folder.name,
        "status": "running",
        "recipe": told.resolved(),
        "methods": methods,
        "seeds": seeds,
        "target": None,
        "retention": {"tasks": [t.name for t in tasks if t.group in ("safety", "retention")]},
        "pilots": {},
        "cells": [],
        "manifest": runs.provenance(),
    }


def _target(results: dict[str, Any]) -> dict[str, Any] | None:
    """The first task that the tuning was for."""
    for task, about in results["tasks"].items():
        if about["group"] == "target":
            up = results["tuned"][task][about["metric"]]["higher_is_better"]
            return {"task": task, "metric": about["metric"], "higher_is_better": up, "title": about["title"]}
    return None


@dataclass
class _Work:
    """The runs of a comparison: each is an ordinary run in a folder of its own, kept where it is done already.

    changes  method -> what it changes in the recipe
    refused  method -> why it cannot be run here: it is not tried again
    """

    told: Recipe
    folder: Path
    changes: dict[str, dict[str, Any]]
    resume: bool
    quiet: bool
    callbacks: Sequence[Any]
    bases: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipes = {m: config.recipe(self.told, {**own, "name": m}) for m, own in self.changes.items()}

    def rates_to_try(self, method: str) -> list[float]:
        """None where the method names its rate itself."""
        own = {config._canonical(key) for key in self.changes[method]}
        return [] if "train.learning_rate" in own else sorted(self.recipes[method].compare.pilot.rates)

    def _recipe(self, method: str, place: str, changes: Mapping[str, Any]) -> Recipe:
        return config.recipe(self.recipes[method], {**changes, "output_dir": str(self.folder / place), "compare": {}})

    def pilot(self, method: str) -> dict[str, Any]:
        """Held-out loss at each rate (None where the run failed), the best, and whether it is the last of the grid."""
        own, losses = self.recipes[method].compare.pilot, {}
        changes: dict[str, Any] = {
            "data.eval": None, "data.val_size": self.told.data.val_size or own.val_size, "train.eval_strategy": "epoch",
            "train.load_best_model_at_end": False, "train.save_strategy": "no", "evaluate.tasks": [], "evaluate.drift": False,
        }  # fmt: skip
        if own.max_steps is not None:
            changes["train.max_steps"] = own.max_steps
        for rate in self.rates_to_try(method):
            one = self._recipe(method, f"pilot/{method}-{rate:g}", {**changes, "train.learning_rate": rate})
            told = self._attempt(method, one, passes=False)
            if told["status"] == "refused":
                return {"refused": told["error"]}
            losses[rate] = _held_out_loss(Path(one.output_dir or "")) if told["status"] == "done" else None
        return chosen(losses)

    def cell(self, method: str, seed: int, pilot: dict[str, Any] | None) -> dict[str, Any]:
        rate = {"train.learning_rate": pilot["rate"]} if pilot and pilot.get("rate") else {}
        one = self._recipe(method, f"{method}-seed{seed}", {"seed": seed, **rate})
        cell = {"method": method, "seed": seed, "run": Path(one.output_dir or "").name}
        return {**cell, **self._attempt(method, one, passes=self.told.compare.passes)}

    def _attempt(self, method: str, one: Recipe, passes: bool) -> dict[str, Any]:
        if method in self.refused:
            return {"status": "refused", "error": self.refused[method]}
        if self.resume and (kept := kept_results(Path(one.output_dir or ""), one)) is not None:
            return {"status": "done", "results": kept}
        how: dict[str, Any] = {"resume": self.resume, "quiet": self.quiet, "passes": passes}
        if self.told.compare.fresh:
            told = attempt_apart(one, bases=self.folder / "bases", **how)
        else:
            told = attempt(one, bases=self.bases, callbacks=self.callbacks, **how)
        if told["status"] == "refused":
            self.refused[method] = told["error"]
        return told


def _held_out_loss(folder: Path) -> float | None:
    """The last one of a pilot's run, whose weights are of no further use."""
    for weights in (p for p in folder.iterdir() if p.is_dir()):
        shutil.rmtree(weights)
    loss = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["eval_loss"]
    return loss if math.isfinite(loss) else None


def chosen(losses: Mapping[float, float | None]) -> dict[str, Any]:
    """What a pilot says: losses by rate, the rate of the lowest, and a warning where no rate beyond it was tried."""
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    best = min(known, key=known.__getitem__) if known else None
    edge = None
    if best is not None and len(losses) > 1 and best in (min(losses), max(losses)):
        edge = f"the {'lowest' if best == min(losses) else 'highest'} that was tried"
    return {"held_out_loss": {f"{rate:g}": loss for rate, loss in losses.items()}, "rate": best, "edge": edge}


def kept_results(path: Path, one: Recipe) -> dict[str, Any] | None:
    """Results of a cell that is done and was run by the same recipe."""
    folder = runs.RunFolder(path)
    if not (path / "results.json").exists():
        return None
    told = folder.manifest
    before, now = ({k: v for k, v in r.items() if k != "compare"} for r in (told["recipe"], one.resolved()))
    if told["status"] != "done" or before != now:
        return None
    return json.loads((path / "results.json").read_text(encoding="utf-8"))
