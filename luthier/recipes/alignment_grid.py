"""Alignment grid: preference methods from several starts and on several numbers of pairs, under equal conditions, with evidence.

    trials     start x method x (rates x options), at one size, a seed each:  score = mean of reward accuracy on held-out pairs
               and, where there is one, of the development task; the best trial's settings are the method's from this start
    cells      start x method x size x seed, at these settings; a size is the first pairs of one shuffled order, so sizes nest
    value      of a group of tasks: mean over its tasks' main metrics (those to be low count negative) and over seeds
    interval   of values and of differences on the same items: 95 % of `resamples` draws of the items
    rank       1 + methods that are better with an interval that leaves out 0:  methods that cannot be told apart tie

    methods    losses of pairs by name (dpo, ipo, kto, cpo, simpo, orpo, ...)
    starts     name -> nothing: the recipe's model;  {model: another one};  {data, train, tuner, objective}: tuned on these first,
               sft by full tuning where it says nothing else. `train` stands over the recipe's
    sizes      numbers of pairs;  trial_size  pairs of a trial, None: the middle one
    rates      learning rates of the trials;  strengths  their objective.beta;  options  method -> list of changes in its place
    groups     group -> tasks, as under evaluate.tasks: what methods are ranked by. No trial sees them
    dev        a task that trials are judged by as well
    max_new_tokens, stop   of the answers to held-out prompts whose length and end are told
    seeds, fresh  as in peft_benchmark

    <start>/  a comparison each;  trials/<start>/;  starts/<start>/  the model, where it is tuned first;  held_out.jsonl
    compare.json  every cell, line, rank and difference;  table.csv;  report.html  with the curves
Start:      `procedure: alignment_grid`, pairs in data.train and others in data.eval. Options of a method: {compare.methods: {ipo:
            {objective.reduction: sum}}}. Goes on with `--resume`, cell by cell.
Cost:       starts * methods * (trials + sizes * seeds) runs. Pairs are read by the tokenizer once a size and kept; answers of
            a start to them are computed once, for all sizes (in blocks) and for every method that asks for them.
Paper:      Saeidi et al., 2024, "Insights into Alignment: Evaluating DPO and its Variants Across Multiple Tasks",
            arXiv:2404.14723.
Departures: every pair counts as two answers for every method, so effective batches are equal. KTO shares the others' reference
            of pairs; that of its mismatched answers is its own, and new for each size, as they come from the pairs at hand.
            Intervals are of items: seeds are averaged, and their spread stands in each comparison. Nobody judges chats here.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from luthier.core import catalog, config, runs
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.evaluation._compare import task
from luthier.recipes import _grid_table as table
from luthier.recipes._stages import finished, resumed, small_artefact, stage
from luthier.verbs.compare import Comparison, must_be_new, told_if_stopped

Changes = dict[str, Any]
HELD_OUT, ENDINGS = "held_out", "stopping"
"""Tasks that every cell has beside those of the groups."""
OWN = ("model", "data", "train", "tuner", "objective")
"""What a start may say."""


@dataclass(frozen=True)
class AlignmentGrid(Recipe):
    paper: ClassVar[str] = "arXiv:2404.14723"
    cards: ClassVar[tuple[int, ...]] = (14,)
    compares: ClassVar[bool] = True

    methods: tuple[str, ...] = ("dpo", "ipo", "kto", "cpo")
    starts: dict[str, dict[str, Any]] = field(default_factory=lambda: {"base": {}})
    sizes: tuple[int, ...] = (1000, 5000, 20000)
    trial_size: int | None = None
    rates: tuple[float, ...] = (5e-6, 5e-5)
    strengths: tuple[float, ...] = (0.05, 0.1, 0.3)
    options: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    dev: dict[str, Any] | None = None
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    resamples: int = 2000
    seeds: int = 3
    fresh: bool = True

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {
            "procedure.methods": ["kto", "dpo"], "procedure.sizes": [16, 32], "procedure.strengths": [0.1, 0.5],
            "procedure.seeds": 1, "procedure.fresh": False, "procedure.resamples": 100, "train.max_steps": 2,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------------ the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Grid` in `folder`. Raises ConfigError for what does not fit, before anything is trained."""
        place, resume = Path(folder), bool(given.get("resume"))
        must_be_new(place, resume)
        self.check(recipe)
        recipe = self.shared(recipe, place)
        rows = self.store(recipe)
        told: dict[str, Any] = {
            "kind": "compare", "name": recipe.name or place.name, "status": "running", "recipe": recipe.resolved(),
            "methods": [], "seeds": [recipe.seed + i for i in range(self.seeds)], "target": None, "pilots": {}, "cells": [],
            "manifest": runs.provenance(),
        }  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        runs.write_json(place / "compare.json", told)
        trials: dict[str, dict[str, Any]] = {}
        done: dict[str, Comparison] = {}
        with told_if_stopped(place / "compare.json", told):
            for start, spec in self.starts.items():
                model = self.begun(start, spec, recipe, place, say, given)
                mine = config.recipe(recipe, {"model": model})
                if self.store(mine) != rows:
                    raise LuthierError(
                        f"procedure.starts.{start}: pairs become other tokens there than with '{recipe.model.model_name_or_path}' "
                        "(another tokenizer or chat template): give all starts the same one"
                    )
                trials[start] = self.tried(start, mine, place, say, given)
                done[start] = self.compare(start, mine, place, trials[start], say, given)
        found = self.judged(place, done)
        told |= self.told(done, trials, found)
        told["status"], told["manifest"]["finished"] = "done", runs.now()
        runs.write_json(place / "compare.json", told)
        runs.write_text(place / "table.csv", table.as_csv(found))
        from luthier.report import write_grid_report

        say(f"report: {write_grid_report(place)}")
        for text in told["grid"]["findings"]:
            say(text)
        return Grid(place, told, found)

    def check(self, recipe: RunRecipe) -> None:
        """Everything that can be told without reading rows or a model."""
        if recipe.data.train is None or recipe.data.eval is None:
            raise ConfigError(
                "recipe: procedure alignment_grid trains on the pairs of data.train and chooses by those of data.eval: name both"
            )
        known = [e.name for e in catalog.entries("objectives")]
        for name in self.methods:
            if name not in known:
                raise ConfigError(f"procedure.methods: {catalog._unknown('method', name, known)}")
            if "preference" not in catalog.load("objectives", name).rows:
                raise ConfigError(f"procedure.methods: '{name}' does not learn from pairs")
        if not self.sizes or sorted(set(self.sizes)) != list(self.sizes) or self.sizes[0] < 1:
            raise ConfigError(f"procedure.sizes is {list(self.sizes)}: numbers of pairs, the smallest first")
        if len({len(self.trials(name)) for name in self.methods}) > 1:
            counts = ", ".join(f"{name} {len(self.trials(name))}" for name in self.methods)
            raise ConfigError(
                f"procedure: every method gets the same number of trials, and these are {counts}: name as many options for each"
            )
        for name, spec in self.starts.items():
            if other := [key for key in spec if key not in OWN]:
                raise ConfigError(f"procedure.starts.{name}: {other[0]} is none of {', '.join(OWN)}")
            if "data" not in spec and set(spec) - {"model"}:
                raise ConfigError(f"procedure.starts.{name}: data is missing: what the start is tuned on")
            tuner = catalog.load("tuners", self.tuner_of(spec)["name"])
            if "data" in spec and tuner.artefact != "model":
                raise ConfigError(
                    f"procedure.starts.{name}: what {self.tuner_of(spec)['name']} leaves is an adapter, and cells start from whole "
                    "models: use full"
                )
        for told in (*itertools.chain(*self.groups.values()), *([self.dev] if self.dev else [])):
            task(told)

    @staticmethod
    def tuner_of(spec: Mapping[str, Any]) -> dict[str, Any]:
        told = spec.get("tuner", "full")
        return {"name": told} if isinstance(told, str) else dict(told)

    def trials(self, method: str) -> list[Changes]:
        """What each trial of a method changes."""
        own = self.options.get(method)
        if own is None:
            scaled = "beta" in {f.name for f in fields(catalog.load("objectives", method))}
            own = [{"objective.beta": beta} for beta in self.strengths] if scaled else [{}]
        return [{"train.learning_rate": rate, **one} for rate in self.rates for one in own]

    # ------------------------------------------------------------------------------------------------- the pairs

    def shared(self, recipe: RunRecipe, place: Path) -> RunRecipe:
        """The recipe with what all cells share: one order of pairs, one cache of tokens. Writes the held-out pairs."""
        from luthier import data

        told = recipe.data
        assert told.train is not None and told.eval is not None
        given: dict[str, Any] = {"columns": told.columns, "template": told.template, "seed": recipe.seed}
        order = told.shuffle if told.shuffle is not None else 0
        pool, held = data.read(told.train, limit=told.limit, shuffle=order, **given), data.read(told.eval, **given)
        if len(pool) < self.sizes[-1]:
            raise ConfigError(f"procedure.sizes: {self.sizes[-1]} pairs are asked for, data.train has {len(pool)}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", data.LeakWarning)
            try:
                data.overlap(pool, held)
            except data.LeakWarning as leak:
                raise LuthierError(f"data.eval: {leak}: what trials are chosen by must be other pairs") from None
        place.mkdir(parents=True, exist_ok=True)
        runs.write_lines(place / f"{HELD_OUT}.jsonl", held.rows)
        return config.recipe(
            recipe,
            {"data.shuffle": order, "data.cache_dir": told.cache_dir or str(place / "store")},
        )

    def store(self, recipe: RunRecipe) -> str:
        """Hash of the pairs as tokens, of the largest size; they are kept for the cells."""
        from luthier.verbs.run import prepare

        told = self.cell(self.methods[0], self.sizes[-1], {}, recipe)
        ready = prepare(config.recipe(recipe, {**told, "procedure": None, "evaluate.tasks": []}))
        return str(ready.train.report.sha256)

    # ------------------------------------------------------------------------------------------------ the stages

    def begun(
        self, start: str, spec: Mapping[str, Any], recipe: RunRecipe, place: Path, say: Callable[[str], None],
        given: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Model settings of a start; where it has rows, it is tuned on them first."""
        from luthier.verbs.run import run

        other = spec.get("model", {})
        model = {**recipe.model.model_dump(exclude_unset=True),
                 **({"model_name_or_path": other} if isinstance(other, str) else other)}  # fmt: skip
        if "data" not in spec:
            return model
        home = place / "starts" / start
        rows = spec["data"] if isinstance(spec["data"], Mapping) else {"train": spec["data"]}
        train = {**recipe.train.model_dump(exclude_unset=True), **spec.get("train", {}), "save_delta": False}
        told = stage(
            recipe, name=start, output_dir=str(home), model=model, data=rows, train=train, tuner=self.tuner_of(spec),
            objective=config.recipe({"model": model, "objective": spec.get("objective", "sft")}).objective,
            evaluate={"drift": False}, compare={},
        )  # fmt: skip
        if not (given.get("resume") and finished(home, told)):
            say(f"alignment_grid: {start} is tuned first")
            run(told, **{**given, "resume": resumed(home, given.get("resume")), "bases": None})
        return {**model, "model_name_or_path": str(home)}

    def cell(self, method: str, size: int, settings: Changes, recipe: RunRecipe) -> Changes:
        """What a cell changes in the recipe; what the recipe says of the method stands below what trials chose."""
        own = recipe.compare.methods.get(method, {})
        return {
            "objective": {"name": method}, "data.limit": size, **small_artefact(recipe.tuner["name"]), **own, **settings
        }  # fmt: skip

    def _compare(
        self, recipe: RunRecipe, place: Path, methods: dict[str, Changes], tasks: list[Any],
        given: Mapping[str, Any], seeds: int, **more: Any,
    ) -> Comparison:  # fmt: skip
        from luthier.verbs.compare import compare

        told = config.recipe(
            recipe,
            {
                "procedure": None, "name": place.name, "output_dir": str(place), "compare.methods": methods,
                "compare.seeds": seeds, "compare.fresh": self.fresh, "evaluate.tasks": tasks, **more,
            },
        )  # fmt: skip
        return compare(told, resume=bool(given.get("resume")), quiet=given.get("quiet", False),
                       callbacks=given.get("callbacks") or ())  # fmt: skip

    def tried(
        self, start: str, recipe: RunRecipe, place: Path, say: Callable[[str], None], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Method -> its trials with their scores, and the chosen one."""
        size = self.trial_size or self.sizes[len(self.sizes) // 2]
        trials = {m: self.trials(m) for m in self.methods}
        if len(trials[self.methods[0]]) == 1:
            return {m: {"size": size, "trials": [{"settings": one}], "chosen": 0} for m, (one,) in trials.items()}
        named = {
            f"{m}-{i}": self.cell(m, size, one, recipe)
            for m, several in trials.items()
            for i, one in enumerate(several)
        }
        tasks = [self.held_out(place), *([self.dev] if self.dev else [])]
        say(f"alignment_grid: {start}: {len(named)} trials on {size} pairs")
        home = place / "trials" / start
        done = self._compare(recipe, home, named, tasks, given, 1, **{"evaluate.drift": False, "evaluate.audit": None})
        for cell in done.told["cells"]:
            for weights in (p for p in (home / cell["run"]).glob("*") if p.is_dir()):
                shutil.rmtree(weights)
        out: dict[str, Any] = {}
        for method, several in trials.items():
            scores = [self.score(done.cells(f"{method}-{i}")) for i in range(len(several))]
            best = max((i for i, s in enumerate(scores) if s is not None), key=lambda i: scores[i] or 0.0, default=0)
            told = [{"settings": one, "score": s} for one, s in zip(several, scores, strict=True)]
            out[method] = {"size": size, "trials": told, "chosen": best}
            say(f"alignment_grid: {start}: {method}: chosen of {len(several)} trials: {several[best]}")
        return out

    @staticmethod
    def score(cells: Sequence[Mapping[str, Any]]) -> float | None:
        """Mean over the tasks that trials are judged by; None for a trial that failed."""
        if not cells:
            return None
        results = cells[0]["results"]
        values = [table.signed(results["tuned"][name][about["metric"]]) for name, about in results["tasks"].items()]
        return sum(values) / len(values)

    def compare(
        self, start: str, recipe: RunRecipe, place: Path, trials: Mapping[str, Any], say: Callable[[str], None],
        given: Mapping[str, Any],
    ) -> Comparison:  # fmt: skip
        """All cells of a start."""
        cells: dict[str, Changes] = {}
        for method in self.methods:
            chosen = trials[method]["trials"][trials[method]["chosen"]]["settings"]
            cells |= {f"{method}-{size}": self.cell(method, size, chosen, recipe) for size in self.sizes}
        say(f"alignment_grid: {start}: {len(cells)} cells under {self.seeds} seeds")
        return self._compare(recipe, place / start, cells, self.tasks(recipe, place), given, self.seeds)

    def held_out(self, place: Path) -> dict[str, Any]:
        return {
            "name": HELD_OUT, "title": "held-out pairs", "scorer": "preferences", "metric": "reward_accuracy",
            "data": str(place / f"{HELD_OUT}.jsonl"),
        }  # fmt: skip

    def tasks(self, recipe: RunRecipe, place: Path) -> list[Any]:
        """What every cell is asked: the groups, the recipe's own, held-out pairs, and how answers end."""
        ends = {
            "name": ENDINGS, "title": "answers that end", "scorer": "stopping", "data": str(place / f"{HELD_OUT}.jsonl"),
            "max_new_tokens": self.max_new_tokens, "stop": list(self.stop), "group": "retention",
        }  # fmt: skip
        return [*itertools.chain(*self.groups.values()), *recipe.evaluate.tasks, self.held_out(place), ends]

    # ------------------------------------------------------------------------------------------------- the table

    def judged(self, place: Path, done: Mapping[str, Comparison]) -> table.Table:
        """Lines, ranks and differences of all cells."""
        groups = {g: [task(t) for t in tasks] for g, tasks in self.groups.items()}
        groups |= {"held-out pairs": [task(self.held_out(place))]}
        lines = [
            table.line(
                start,
                method,
                size,
                one.cells(f"{method}-{size}"),
                one.told["cells"],
                place / start,
                groups,
                self.resamples,
            )
            for start, one in done.items()
            for method in self.methods
            for size in self.sizes
        ]
        zero = {start: table.zero(one.told["cells"], groups) for start, one in done.items()}
        return table.Table(lines, zero, list(groups))

    def told(self, done: Mapping[str, Comparison], trials: Mapping[str, Any], found: table.Table) -> dict[str, Any]:
        """What the grid adds to compare.json."""
        cells = [
            {**c, "method": f"{start}: {c['method']}", "run": f"{start}/{c['run']}"}
            for start, one in done.items()
            for c in one.told["cells"]
        ]
        return {
            "methods": list(dict.fromkeys(c["method"] for c in cells)), "cells": cells, "comparisons": list(done),
            "grid": {
                "methods": list(self.methods), "starts": list(self.starts), "sizes": list(self.sizes), "trials": dict(trials),
                **found.told(),
            },
        }  # fmt: skip


@dataclass
class Grid(Comparison):
    """A finished grid: its folder, what compare.json holds, and the table with its draws."""

    found: table.Table

    def table(self) -> list[dict[str, Any]]:
        return [line.told() for line in self.found.lines]

    def front(self) -> list[str]:
        """A grid has a front a start: in the start's own comparison."""
        return []

    def table_text(self) -> str:
        return table.as_text(self.found)


__all__ = ["AlignmentGrid", "Grid"]
