"""Personalise: one model for many projects, a small delta for each, and which way of making it is worth its cost.

    stage 0      optional: the whole model on the task, with rows of all projects that are not personalised
    a project    near-duplicates out; files to train, validation, test; every scheme from the same base, stopped on validation
    custom                all parameters                        -> what moved, as a delta
    embeddings_output     token table and output layer          -> a table, or two
    last_block            the last decoder block                -> a block
    prefix                keys and values in every layer        -> a prefix
    lora                  low-rank updates of the matrices      -> factors

    projects    that are personalised; none: all that the data have
    project, file   columns;  val_size, test_size  shares of a project's rows
    generic     what stage 0 changes in the recipe ({train.max_steps: 300}); none: no stage 0
    patience    evaluations without a better validation loss after which a run stops
The recipe's `compare.methods` replace the five schemes, `compare.seeds` repeat them. Tasks under `evaluate` that name no data
are asked about the project's test rows; with none, perplexity, likeness and style are measured. Perplexity on the test rows of
every other project is always measured: the cross-project matrix.

    projects/<project>/<scheme>-seed<n>   a run with its delta/ or adapter/;  projects/<project>/report.html  its comparison
    personalize.json, report.html         comparison (Wilcoxon over projects), cross-project matrix, cost sheet
    results.json                          means over projects, for the scheme with the best validation loss
The folder itself loads as the first project's model by that scheme.
Start:      `procedure: personalize`. A run that was stopped goes on with `--resume`; runs that are done are kept.
Cost:       projects * schemes * seeds runs, each stored without its optimiser state; one more for stage 0.
Paper:      Zlotchevski et al., 2022, "Exploring and Evaluating Personalized Models for Code Generation", arXiv:2208.13928.
Departures: one rate a scheme instead of a grid (rates stand in `compare.methods`); LoRA is a fifth row. The prefix is trained
            directly: the network that would make it is larger than what is stored. Duplicates are told by the abstracted
            prompt and completion together, since short tests of different functions are often equal.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

import luthier
from luthier.core import catalog, config, runs
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.core.runs import RunFolder
from luthier.data import RowTable
from luthier.recipes._projects import PARTS, Project, average, by_project, of_projects, paired, split_project

SCHEMES: dict[str, dict[str, Any]] = {
    "custom": {"tuner": {"name": "full"}, "train.learning_rate": 5e-5},
    "embeddings_output": {"tuner": {"name": "lightweight"}, "train.learning_rate": 1e-4},
    "last_block": {"tuner": {"name": "lightweight", "variant": "last_block"}, "train.learning_rate": 1e-4},
    "prefix": {"tuner": {"name": "prefix", "length": 20, "mlp": 0}, "train.learning_rate": 1e-2},
    "lora": {"tuner": {"name": "lora"}},
}
STOP = {"max_new_tokens": 128, "stop": ["\n\n"]}
TASKS: list[dict[str, Any]] = [
    {"name": "likeness", "title": "like the project's own", "scorer": "code_similarity", **STOP},
    {"name": "style", "title": "in the project's style", "scorer": "code_style", **STOP},
]
INTRINSIC, ELSEWHERE = "perplexity", "on_"
"""The task of a project's own test rows, and how those of the other projects' begin."""


@dataclass(frozen=True)
class Personalize(Recipe):
    paper: ClassVar[str] = "arXiv:2208.13928"
    cards: ClassVar[tuple[int, ...]] = (21, 63)

    projects: tuple[str, ...] = ()
    project: str = "project"
    file: str = "file"
    val_size: float = 0.1
    test_size: float = 0.1
    generic: dict[str, Any] | None = None
    patience: int = 3

    @classmethod
    def small(cls) -> dict[str, Any]:
        """What makes a recipe of this procedure end in seconds."""
        return {
            "data.train": "sandbox:projects?n=160", "procedure.projects": ["harbour", "bakery"],
            "procedure.generic": None, "train.max_steps": 2, "evaluate.limit": 2,
            "evaluate.tasks": [{"name": "style", "scorer": "code_style", "max_new_tokens": 8}],
            "compare.methods": {
                "custom": {"train.learning_rate": 1e-3},
                "prefix": {"tuner.length": 2, "tuner.mlp": 0, "train.learning_rate": 1e-2},
            },
        }  # fmt: skip

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """Personalise every project by every scheme into `folder`.

        Raises LuthierError where rows lack a project or file, or where no scheme ended for all projects.
        """
        from luthier.verbs.run import RunResult, _status

        place, resume = RunFolder(folder), bool(given.get("resume"))
        mine, others = self.split(recipe)
        told = self.settled(recipe)
        schemes = self.schemes(told)
        self.open(place, recipe, mine, resume)
        with _status(place, True):
            base = self.stage_0(told, place.path, others, say, given)
            cells: list[Cell] = []
            files = {p.name: p.write(place.path / "projects" / p.folder / "rows") for p in mine}
            for p in mine:
                say(f"{p.name}: {', '.join(f'{len(p.parts[part])} {part}' for part in PARTS)} rows")
                cells += self.one_project(told, base, p, files, schemes, place.path, resume, given)
            summary = Summary([p.name for p in mine], list(schemes), cells)
            chosen = summary.chosen()
            say(f"{chosen} has the lowest validation loss over {len(mine)} projects")
            kept = summary.cells_of(mine[0].name, chosen)[0]
            self.take(place, kept)
            results = summary.results(chosen)
            runs.write_json(place.path / "results.json", results)
        runs.write_json(place.path / "personalize.json", self.told(place, recipe, mine, summary, chosen))
        say(f"report: {_report(place.path)}")
        return RunResult(place.path, results, kept.fitted(), luthier.load(str(place.path)))

    # ------------------------------------------------------------------------------------------------- before

    def split(self, told: RunRecipe) -> tuple[list[Project], list[RowTable]]:
        """The projects to personalise, each in parts, and the rows of all others."""
        from luthier import data

        if told.data.train is None:
            raise config.ConfigError(
                "recipe: data.train is missing: rows with prompt, completion, project and the file they are from"
            )
        if min(self.val_size, self.test_size) <= 0 or self.val_size + self.test_size >= 1:
            raise config.ConfigError(
                f"procedure: val_size {self.val_size} and test_size {self.test_size} must be shares that leave some to train on"
            )
        columns, template, limit = told.data.columns, told.data.template, told.data.limit
        table = data.read(told.data.train, columns=columns, template=template, limit=limit, seed=told.seed)
        found = by_project(table, self.project)
        for name in self.projects:
            if name not in found:
                raise config.ConfigError(f"procedure.projects: {catalog._unknown('project', name, list(found))}")
        wanted = list(self.projects) or list(found)
        shares = (self.val_size, self.test_size)
        mine = [split_project(name, found[name], self.file, shares, told.seed) for name in wanted]
        return mine, [rows for name, rows in found.items() if name not in wanted]

    def settled(self, told: RunRecipe) -> RunRecipe:
        """The recipe of a single run: stopped on validation rows, the best of them kept, where it does not say otherwise."""
        steady = {
            "eval_strategy": "epoch", "save_strategy": "no", "load_best_model_at_end": True,
            "early_stopping_patience": self.patience,
        }  # fmt: skip
        changes = {f"train.{k}": v for k, v in steady.items() if k not in told.train.model_fields_set}
        one = config.recipe(told, {**changes, "procedure": None, "stability": {"mode": "none"}})
        used = ("columns", "template", "limit", "val_size", "stratify", "group")  # rows are read and split here
        data = {k: v for k, v in one.data.model_dump(exclude_unset=True).items() if k not in used}
        return config.recipe({**one.model_dump(exclude_unset=True), "data": data})

    def schemes(self, told: RunRecipe) -> dict[str, dict[str, Any]]:
        """What each scheme changes in the recipe; what it trains is saved as a delta where it is the model's own."""
        from luthier.verbs.compare import _changes

        out = {}
        for name, changes in (told.compare.methods or SCHEMES).items():
            own = changes if name not in SCHEMES else {**SCHEMES[name], **changes}
            named = config.recipe(told, {"compare.methods": {name: own}})
            tuner = config.recipe(told, _changes(name, named)).method("tuners", "tuner")
            out[name] = {**own, "train.save_delta": tuner.artefact == "model"}
        return out

    def open(self, place: RunFolder, recipe: RunRecipe, mine: Sequence[Project], resume: bool) -> None:
        from luthier.verbs.run import same_recipe

        if resume and (place.path / "run.json").exists():
            same_recipe(place, recipe)
            place.update(status="running", resumed=runs.now())
            return
        entry = catalog.entry("recipes", self.name)
        place.create({
            "luthier": luthier.__version__, "kind": "procedure", "name": recipe.name or place.path.name,
            "status": "running", "started": runs.now(), "finished": None, "command": runs.command_line(),
            "recipe": recipe.resolved(), "versions": runs.versions(), "device": runs.device(), "git": runs.git(),
            "seeds": {"seed": recipe.seed, "data_seed": recipe.train.data_seed},
            "data": [
                {"name": f"{p.name}, {part}", "source": _sources(recipe), "rows": len(p.parts[part])}
                for p in mine for part in PARTS
            ],
            "base": {"name": recipe.model.model_name_or_path},
            "method": {"procedure": self.name, "title": entry.title.partition(": ")[0], "paper": entry.paper},
        })  # fmt: skip
        runs.write_text(place.path / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))

    # -------------------------------------------------------------------------------------------------- runs

    def stage_0(
        self, told: RunRecipe, folder: Path, others: Sequence[RowTable], say: Callable[[str], None],
        given: Mapping[str, Any],
    ) -> str:  # fmt: skip
        """The model that every project starts from: the recipe's, or one tuned on the task with the other projects."""
        from luthier.verbs.compare import _kept
        from luthier.verbs.run import run

        if self.generic is None:
            return told.model.model_name_or_path
        if len(others) < 2:
            raise LuthierError(
                "procedure.generic: stage 0 needs rows of at least two projects that are not personalised; "
                "name those that are in procedure.projects"
            )
        held = max(1, round(self.val_size * len(others)))
        train, validation = others[:-held], others[-held:]  # whole projects
        files = {}
        for part, tables in (("train", train), ("validation", validation)):
            files[part] = folder / "stage-0" / "rows" / f"{part}.jsonl"
            files[part].parent.mkdir(parents=True, exist_ok=True)
            runs.write_lines(files[part], (row for t in tables for row in t.rows))
        say(f"stage 0: {sum(map(len, train))} rows of {len(train)} other projects")
        one = config.recipe(told, {
            "evaluate": {"tasks": [], "drift": False}, "compare": {}, **self.generic, "name": "stage-0",
            "data.train": str(files["train"]), "data.eval": str(files["validation"]),
            "output_dir": str(folder / "stage-0"),
        })  # fmt: skip
        if one.method("tuners", "tuner").artefact != "model" or one.train.save_delta:
            raise config.ConfigError(
                "procedure.generic: stage 0 must end in a whole model: tuner full, and no save_delta"
            )
        if not (given.get("resume") and _kept(folder / "stage-0", one)):
            unfinished = given.get("resume") and (folder / "stage-0" / "run.json").exists()
            quiet, callbacks = given.get("quiet", False), given.get("callbacks", ())
            run(one, resume=True if unfinished else None, quiet=quiet, callbacks=callbacks)
        _forget_checkpoints([folder / "stage-0"])
        return str(folder / "stage-0")

    def one_project(
        self, told: RunRecipe, base: str, project: Project, files: Mapping[str, Mapping[str, Path]],
        schemes: Mapping[str, Any], folder: Path, resume: bool, given: Mapping[str, Any],
    ) -> list[Cell]:  # fmt: skip
        """All schemes on one project: an ordinary comparison."""
        from luthier.verbs.compare import compare

        place = folder / "projects" / project.folder
        own = files[project.name]
        one = config.recipe(told, {
            "name": project.name, "model.model_name_or_path": base, "data.train": str(own["train"]),
            "data.eval": str(own["validation"]), "compare.methods": dict(schemes),
            "evaluate.tasks": self.tasks(told, project.name, {name: f["test"] for name, f in files.items()}),
        })  # fmt: skip
        quiet, callbacks = given.get("quiet", False), given.get("callbacks", ())
        done = compare(one, resume=resume, quiet=quiet, output_dir=place, callbacks=callbacks)
        found = [Cell.of(project.name, place, told_cell) for told_cell in done.told["cells"]]
        _forget_checkpoints(cell.folder for cell in found)
        return found

    def tasks(self, told: RunRecipe, name: str, tests: Mapping[str, Path]) -> list[Any]:
        """What a project's runs are measured by."""
        own = {"name": INTRINSIC, "title": "perplexity of the project's tests", "scorer": INTRINSIC}
        out: list[Any] = [{**own, "data": str(tests[name])}]
        for task in told.evaluate.tasks or TASKS:
            bare = isinstance(task, dict) and "task" not in task and "data" not in task
            out.append({**task, "data": str(tests[name])} if bare and isinstance(task, dict) else task)
        for other, file in tests.items():
            if other != name:
                about = {"title": f"perplexity on {other}", "scorer": INTRINSIC, "group": "retention"}
                out.append({"name": f"{ELSEWHERE}{other}", **about, "data": str(file)})
        return out

    # ------------------------------------------------------------------------------------------------- after

    def take(self, place: RunFolder, kept: Cell) -> None:
        """Put the delta of one run into the folder itself."""
        artefact = RunFolder(kept.folder).manifest["artefact"]
        for kind in ("model", "adapter", "delta"):
            if kind != artefact["path"] and (place.path / kind).is_dir():
                shutil.rmtree(place.path / kind)
        source = kept.folder / artefact["path"]
        runs.write_folder(place.path / artefact["path"], lambda part: _copy(source, part))
        place.update(artefact=artefact)

    def told(
        self, place: RunFolder, recipe: RunRecipe, mine: Sequence[Project], summary: Summary, chosen: str
    ) -> dict[str, Any]:
        """What personalize.json holds."""
        manifest = place.manifest
        return {
            "kind": "personalize", "name": manifest["name"], "status": manifest["status"], "recipe": manifest["recipe"],
            "projects": {
                p.name: {
                    **{part: len(p.parts[part]) for part in PARTS}, "duplicates": p.duplicates, "folder": p.folder,
                    "files": {part: len({str(r.get(self.file)) for r in p.parts[part]}) for part in PARTS},
                }
                for p in mine
            },
            **summary.told(chosen, mine[0].name), "manifest": {k: manifest.get(k) for k in MANIFEST},
        }  # fmt: skip


MANIFEST = (
    "luthier",
    "started",
    "finished",
    "command",
    "versions",
    "device",
    "git",
    "base",
    "seeds",
    "data",
    "artefact",
)


def _sources(recipe: RunRecipe) -> str:
    train = recipe.data.train
    return train if isinstance(train, str) else ", ".join(str(s) for s in train or [])


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _forget_checkpoints(folders: Iterable[Path]) -> None:
    """Of a run that is done the delta stays; what was needed to go on does not."""
    for folder in folders:
        if (folder / "results.json").exists():
            for checkpoint in RunFolder(folder).checkpoints():
                shutil.rmtree(checkpoint)


def _report(folder: Path) -> Path:
    from luthier.report import write_personalize_report

    return write_personalize_report(folder)


# ------------------------------------------------------------------------------------------------------ summary


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
            ratios = [
                self.ratio(scheme, p, q) for p in self.projects for q in self.projects if p != q
            ]  # fmt: skip
            gain = average(self.gains(scheme))
            row |= {
                "scheme": scheme, "gain": gain, "own_ratio": average([self.ratio(scheme, p, p) for p in self.projects]),
                "other_ratio": average(ratios), "gain_per_pflop": _per(gain, row["flops_to_best"], 1e15),
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
