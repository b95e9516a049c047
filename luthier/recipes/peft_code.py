"""Code study: ways of tuning a model for code beside prompting it, over models and data sets, under one protocol.

    tuned            models * methods * seeds on each set, and on all sets together (`joint`), tested on each
    prompted         the same untuned models with no, n drawn or the n nearest training rows in front of every prompt
    a line           EM@k, code match, tests passed:  mean and sd over seeds;  parameters, peak memory, time, bytes stored

    sets        name -> {train: rows, test: rows}, each with prompt and completion
    models      name -> its methods; none: the recipe's model with all `methods`. A name that ends in :nf4 or :int8 is that
                model with the layers' matrices rounded, which stay still: for methods that train none of them
    joint       methods that are also trained on all sets together
    shots       the n of prompts;  shot_seeds  draws of the n rows, each put in front of every test row
    retrieve    how the nearest rows are found: "bm25", the name of an encoder, or "" for not at all
    intent      column of what is asked for: nearness and leaks are told by it
    separator   between examples;  stop  ends an answer, for every line alike;  k, max_new_tokens  as in the tasks
    tasks       asked about each set's test rows, without data; none: candidates, code_similarity, and code_tests where the
                rows have tests. The first names the target. What the recipe has under `evaluate` is asked of every run
    program     of the usual tasks: how {output} becomes a program, of a row's columns
    seeds, fresh  as in peft_benchmark
A test row whose intent is among the training rows is left out; the checkpoint with the least loss on validation rows, taken
from the training rows, is kept. Rates are the protocol's, or those of a pilot (`compare.pilot.rates`) for every method.

    <set>/, all/     a comparison each: compare.json, report.html with quality against cost, a run folder a cell
    compare.json     every cell, line and answer;  table.csv  the lines;  report.html  table and answers
Start:      `procedure: peft_code`. Goes on with `--resume`, cell by cell and prompt by prompt.
Cost:       (sets + joint) * methods * seeds runs, and sets * models * (1 + n * (draws + 1)) times asking about the test rows.
Paper:      Weyssow et al., 2023, "Exploring Parameter-Efficient Fine-Tuning Techniques for Code Generation with Large
            Language Models", arXiv:2308.10462, sections 4 and 5.
Departures: "code match" stands for CodeBLEU, of whose parts it is made with Python's own trees. A rounded base is held in the
            numbers' own type: it shows what rounding costs in quality, its memory is not that of a quantised model. Prompt
            tuning starts from drawn words of the vocabulary instead of an instruction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from luthier.core import catalog, config, runs
from luthier.core.bm25 import have_bm25
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import Recipe
from luthier.core.quantise import KINDS
from luthier.core.shots import Choose, WithExamples, by_meaning, by_words, drawn
from luthier.evaluation._compare import task
from luthier.recipes import _code_table as table
from luthier.recipes._code_sets import VALIDATION, read_sets
from luthier.recipes._projects import Project, folder_name
from luthier.recipes._stages import forget_checkpoints, rounded_copy, small_artefact
from luthier.recipes._summary import Cell
from luthier.verbs.compare import Comparison, must_be_new, told_if_stopped

METHODS: dict[str, dict[str, Any]] = {
    "full": {"train.learning_rate": 5e-5},
    "lora": {"tuner.r": 16, "tuner.alpha": 32, "tuner.dropout": 0.05, "tuner.targets": ["q", "k", "v"],
             "train.learning_rate": 3e-4},
    "ia3": {"train.learning_rate": 3e-4},
    "prompt_tuning": {"tuner.tokens": 20, "train.learning_rate": 3e-3},
    "prefix": {"tuner.length": 20, "tuner.mlp": 0, "train.learning_rate": 3e-2},
}  # fmt: skip
"""The protocol's settings."""
TRAIN = {
    "num_train_epochs": 5.0, "per_device_train_batch_size": 8, "optim": "adafactor", "lr_scheduler_type": "linear",
    "warmup_ratio": 0.05, "eval_strategy": "steps", "save_strategy": "no", "load_best_model_at_end": True,
}  # fmt: skip
LOOKS = 5
"""Times an epoch at which validation rows are looked at."""
ALL = "all"
"""The comparison that is trained on all sets; a task there is about the set that its name ends in."""
SAME = ("evaluate", "decoding", "data", "objective")
"""Sections in which no method may differ: what it learns from, when it stops and what it is measured by."""


@dataclass(frozen=True)
class PeftCode(Recipe):
    paper: ClassVar[str] = "arXiv:2308.10462"
    cards: ClassVar[tuple[int, ...]] = (63,)
    compares: ClassVar[bool] = True

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    methods: tuple[str, ...] = tuple(METHODS)
    joint: tuple[str, ...] = ()
    shots: tuple[int, ...] = (1, 2, 3)
    shot_seeds: tuple[int, ...] = (42, 777, 5432, 55555, 97)
    retrieve: str = "bm25"
    intent: str = "prompt"
    separator: str = "\n\n"
    stop: tuple[str, ...] = ("\n\n",)
    k: tuple[int, ...] = (1, 2, 5, 10)
    max_new_tokens: int = 64
    tasks: tuple[dict[str, Any], ...] = ()
    program: str = "{output}"
    seeds: int = 3
    fresh: bool = True

    @classmethod
    def small(cls) -> dict[str, Any]:
        rows = {name: "sandbox:programs?part=known&task=" + name for name in ("write", "write_tested")}
        return {
            "procedure.sets": {n: {"train": f"{r}&n=24", "test": f"{r}&split=test&n=4"} for n, r in rows.items()},
            "procedure.tasks": [{"name": "reference", "scorer": "candidates", "k": [1, 2], "max_new_tokens": 8}],
            "procedure.methods": ["lora"], "procedure.joint": ["lora"], "procedure.shots": [1], "procedure.shot_seeds": [42],
            "procedure.retrieve": "", "procedure.seeds": 1, "train.max_steps": 2, "evaluate.limit": 2,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Study` in `folder`. Raises ConfigError for sets, models and methods that do not fit, before anything runs."""
        place = Path(folder)
        must_be_new(place, bool(given.get("resume")))
        models = self.models or {recipe.model.model_name_or_path: self.methods}
        self.check(models, recipe)
        sets = read_sets(self.sets, recipe, self.intent)
        for one in sets:
            rows = ", ".join(f"{len(rows)} {part}" for part, rows in one.parts.items())
            say(f"{one.name}: {rows} rows, {one.duplicates} test rows left out: their intent is trained on")
        place.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {
            "kind": "compare", "name": recipe.name or place.name, "status": "running", "recipe": recipe.resolved(),
            "methods": [], "seeds": [recipe.seed + i for i in range(self.seeds)], "target": None, "pilots": {}, "cells": [],
            "sets": {s.name: {**{p: len(r) for p, r in s.parts.items()}, "left_out": s.duplicates} for s in sets},
            "manifest": runs.provenance(),
        }  # fmt: skip
        runs.write_json(place / "compare.json", told)
        work = _Work(self, place, recipe, sets, models, say, given)
        with told_if_stopped(place / "compare.json", told):
            comparisons = {name: work.compare(name) for name in work.comparisons()}
            lines = [line for one in sets for line in work.lines(one, comparisons)]
        told |= work.told(comparisons, lines)
        told["status"], told["manifest"]["finished"] = "done", runs.now()
        runs.write_json(place / "compare.json", told)
        runs.write_text(place / "table.csv", table.as_csv(lines))
        from luthier.report import write_study_report

        say(f"report: {write_study_report(place)}")
        for answer in (a for q in told["questions"] for a in q["answers"]):
            say(answer["text"])
        return Study(place, told, lines, work.metrics)

    def check(self, models: Mapping[str, Sequence[str]], recipe: RunRecipe) -> None:
        """Everything that can be told without reading rows or a model."""
        if not self.sets:
            raise config.ConfigError("procedure.sets is missing: {name: {train: rows, test: rows}}")
        if bad := [name for name in self.sets if name != folder_name(name) or name == ALL]:
            raise config.ConfigError(
                f"procedure.sets: '{bad[0]}' cannot name a folder of its own: use letters, digits, - and _"
            )
        if self.joint and len(self.sets) < 2:
            raise config.ConfigError("procedure.joint trains on all sets together, and there is one: remove the key")
        known = [e.name for e in catalog.entries("tuners")]
        for name in (*self.joint, *(m for methods in models.values() for m in methods)):
            if name not in known:
                raise config.ConfigError(f"procedure.methods: {catalog._unknown('method', name, known)}")
        for model, methods in models.items():
            whole = [m for m in methods if catalog.load("tuners", m).artefact == "model"]
            if rounded_as(model) and whole:
                raise config.ConfigError(
                    f"procedure.models: {whole[0]} trains what is rounded in {model}: use adapters there"
                )
        for name, changes in recipe.compare.methods.items():
            if other := [k for k in changes if k.split(".")[0] in SAME]:
                raise config.ConfigError(
                    f"compare.methods.{name}: {other[0]} has to be the same for every method: remove it"
                )
        if recipe.compare.pilot.rates and (
            own := [m for m, c in recipe.compare.methods.items() if "train.learning_rate" in c]
        ):
            raise config.ConfigError(
                f"compare.methods.{own[0]}: train.learning_rate is named while the others' rates are chosen by a pilot: "
                "name compare.pilot.rates there, or remove compare.pilot"
            )
        for told in self.tasks:
            if "data" in told or not told.get("name"):
                raise config.ConfigError(
                    "procedure.tasks have a name and no data, as they are asked about each set's test rows: others go under "
                    "evaluate.tasks"
                )
            task(told)
        if any(n < 1 for n in self.shots) or (self.shots and not self.shot_seeds):
            raise config.ConfigError(
                "procedure: shots are numbers of examples from 1 on, each drawn by every one of shot_seeds"
            )
        if self.shots and self.retrieve == "bm25" and not have_bm25():
            raise config.ConfigError(
                "procedure.retrieve: bm25 needs the package bm25s: pip install 'luthier[retrieval]'"
            )

    def usual(self, tested: bool) -> list[dict[str, Any]]:
        """The tasks of a set whose recipe names none."""
        same = {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}
        out: list[dict[str, Any]] = [
            {
                "name": "reference",
                "title": "reference among the first answers",
                "scorer": "candidates",
                "k": list(self.k),
            },
            {"name": "likeness", "title": "like the reference", "scorer": "code_similarity", "program": self.program},
        ]
        if tested:
            out.append({"name": "tests", "title": "tests passed", "scorer": "code_tests", "program": self.program})
        return [{**task, **same} for task in out]


def rounded_as(model: str) -> str:
    """How the matrices of a model of this name are rounded; empty where they are as they are."""
    kind = model.rpartition(":")[2]
    return kind if ":" in model and kind in KINDS else ""


@dataclass
class Study(Comparison):
    """A finished study: its lines, and which figures of them a terminal shows."""

    lines: list[table.Line] = field(default_factory=list)
    metrics: list[table.Metric] = field(default_factory=list)

    def table(self) -> list[dict[str, Any]]:
        return [line.told() for line in self.lines]

    def front(self) -> list[str]:
        """A study has a front a set: in the set's own comparison."""
        return []

    def table_text(self) -> str:
        return table.as_text(self.lines, self.metrics)


# ------------------------------------------------------------------------------------------------- the work


@dataclass
class _Work:
    """Comparisons, prompts and the table of one study. `models` is model -> methods."""

    study: PeftCode
    place: Path
    recipe: RunRecipe
    sets: list[Project]
    models: Mapping[str, Sequence[str]]
    say: Callable[[str], None]
    given: Mapping[str, Any]
    metrics: list[table.Metric] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = {s.name: s.write(self.place / "rows" / s.name) for s in self.sets}
        self.paths = {model: self._base(model) for model in self.models}

    def _base(self, model: str) -> str:
        """The model itself, or a copy whose matrices are rounded."""
        if not (kind := rounded_as(model)):
            return model
        base = config.recipe(self.recipe, {"model.model_name_or_path": model.rpartition(":")[0]}).model
        return str(rounded_copy(base, kind, self.place / "rounded" / short(model)))

    # -------------------------------------------------------------------------------------- comparisons

    def comparisons(self) -> list[str]:
        """A set's name, or ALL. Models without methods are only prompted."""
        own = [s.name for s in self.sets] if any(self.models.values()) else []
        return own + ([ALL] if self.named(ALL) else [])

    def named(self, comparison: str) -> dict[str, tuple[str, str]]:
        """Name of every method of a comparison -> (model, tuner)."""
        found = [
            (model, method)
            for model, methods in self.models.items()
            for method in methods
            if comparison != ALL or method in self.study.joint
        ]
        return {
            method if len(self.models) == 1 else f"{method}@{short(model)}": (model, method) for model, method in found
        }

    def told_of(self, comparison: str) -> RunRecipe:
        """The recipe of a comparison: an ordinary one, on rows that are files now."""
        mine = [s.name for s in self.sets if comparison in (s.name, ALL)]
        own = METHODS if not self.recipe.compare.pilot.rates else {
            m: {k: v for k, v in changes.items() if k != "train.learning_rate"} for m, changes in METHODS.items()
        }  # fmt: skip
        methods = {}
        for name, (model, method) in self.named(comparison).items():
            said = self.recipe.compare.methods
            methods[name] = {
                "model.model_name_or_path": self.paths[model], "tuner": {"name": method}, **small_artefact(method),
                **own.get(method, {}), **said.get(method, {}), **(said.get(name, {}) if name != method else {}),
            }  # fmt: skip
        changes: dict[str, Any] = {
            "name": comparison, "procedure": None, "output_dir": None, "data.columns": None, "data.template": None,
            "data.train": [str(self.files[s]["train"]) for s in mine],
            "data.eval": [str(self.files[s]["validation"]) for s in mine],
            "evaluate.tasks": [*(t for s in mine for t in self.tasks(s, comparison == ALL)), *self.recipe.evaluate.tasks],
            "compare.methods": methods, "compare.seeds": self.study.seeds, "compare.fresh": self.study.fresh,
            **self._steady(sum(len(s.parts["train"]) for s in self.sets if s.name in mine)),
        }  # fmt: skip
        if "decoding" not in self.recipe.model_fields_set:
            changes["decoding"] = {"name": "beam", "num_beams": max(self.study.k)}
        if "val_size" not in self.recipe.compare.pilot.model_fields_set:
            changes["compare.pilot.val_size"] = VALIDATION
        return config.recipe(self.recipe, changes)

    def _steady(self, rows: int) -> dict[str, Any]:
        """The protocol's training, where the recipe does not say otherwise."""
        own = {f"train.{k}": v for k, v in TRAIN.items() if k not in self.recipe.train.model_fields_set}
        train = config.recipe(self.recipe, own).train
        steps = -(-rows // (train.per_device_train_batch_size * train.gradient_accumulation_steps))
        most = train.max_steps if train.max_steps > 0 else steps
        if train.eval_strategy == "steps" and train.eval_steps is None:
            own["train.eval_steps"] = max(1, min(-(-steps // LOOKS), most))
        return own

    def tasks(self, name: str, several: bool) -> list[dict[str, Any]]:
        """What is asked about the test rows of a set; names tell the set where there are several."""
        rows = next(s for s in self.sets if s.name == name).parts["test"]
        told = list(self.study.tasks) or self.study.usual(all(row.get("tests") for row in rows))
        out = []
        for one in told:
            called = f"{one['name']} of {name}" if several else one["name"]
            out.append({**one, "name": called, "data": str(self.files[name]["test"])})
        return out

    def compare(self, name: str) -> Comparison:
        from luthier.verbs.compare import compare

        self.say(f"{name}: {', '.join(self.named(name))} under {self.study.seeds} seeds")
        quiet, callbacks = self.given.get("quiet", False), self.given.get("callbacks") or ()
        resume = bool(self.given.get("resume"))
        done = compare(
            self.told_of(name), resume=resume, quiet=quiet, output_dir=self.place / name, callbacks=callbacks
        )
        forget_checkpoints(self.place / name / c["run"] for c in done.told["cells"])
        return done

    # ------------------------------------------------------------------------------------------ the table

    def lines(self, one: Project, comparisons: Mapping[str, Comparison]) -> Iterator[table.Line]:
        """Everything about one set's test rows."""
        for name, kind in ((one.name, table.TUNED), (ALL, table.JOINT)):
            if name not in comparisons:
                continue
            told = comparisons[name].told
            tasks = {
                t["name"]: o["name"]
                for t, o in zip(self.tasks(one.name, name == ALL), self.tasks(one.name, False), strict=True)
            }
            cells = [Cell.of(name, self.place / name, c) for c in told["cells"]]
            for scheme, (model, method) in self.named(name).items():
                mine = [c for c in cells if c.scheme == scheme]
                rate = next((_rate(c.folder) for c in mine if c.status == "done"), None)
                yield table.tuned(one.name, short(model), method, kind, mine, tasks, rate)
        for model in self.models:
            if not rounded_as(model):
                yield from self.prompted(one, model)

    def told(self, comparisons: Mapping[str, Comparison], lines: Sequence[table.Line]) -> dict[str, Any]:
        """What the study adds to compare.json."""
        self.metrics = list(dict.fromkeys(m for line in lines for m in line.metrics))
        cells = [
            {**c, "method": f"{name}: {c['method']}", "run": f"{name}/{c['run']}"}
            for name, done in comparisons.items()
            for c in done.told["cells"]
        ]
        rounded = {short(m): short(m.rpartition(":")[0]) for m in self.models if rounded_as(m)}
        target, up = self._target()
        return {
            "methods": list(dict.fromkeys(c["method"] for c in cells)), "cells": cells,
            "pilots": {f"{name}: {m}": p for name, done in comparisons.items() for m, p in done.told["pilots"].items()},
            "comparisons": list(comparisons), "metric": ".".join(target), "higher_is_better": up,
            "table": [line.told() for line in lines], "questions": table.questions(lines, target, up, rounded),
        }  # fmt: skip

    def _target(self) -> tuple[table.Metric, bool]:
        """The first task's main metric."""
        first = task(self.tasks(self.sets[0].name, False)[0])
        metric = first.metric or next(iter(first.scorer.metrics))
        return (first.name, metric), first.scorer.metrics.get(metric, True)

    # --------------------------------------------------------------------------------------------- prompts

    def prompted(self, one: Project, model: str) -> Iterator[table.Line]:
        """An untuned model without examples, with drawn ones, and with the nearest."""
        asked = _Asked(self, one, model)
        yield table.asked(one.name, short(model), "0 examples", table.ZERO, [asked.about("0", None)])
        for n in self.study.shots:
            seeds = [asked.about(f"{n}-drawn-{seed}", asked.drawn(n, seed)) for seed in self.study.shot_seeds]
            yield table.asked(one.name, short(model), f"{n} drawn", table.DRAWN, seeds)
        for n in self.study.shots if self.study.retrieve else ():
            yield table.asked(
                one.name, short(model), f"{n} nearest", table.NEAREST, [asked.about(f"{n}-nearest", asked.nearest(n))]
            )  # fmt: skip


def short(model: str) -> str:
    """A model's name as one part of a path."""
    return folder_name(Path(model).name.replace(":", "-"))


def _rate(folder: Path) -> float | None:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]["train"]["learning_rate"]


class _Asked:
    """One untuned model asked about one set's test rows; what it answered is kept in a file."""

    def __init__(self, work: _Work, one: Project, model: str):
        from luthier.verbs.run import measured_tasks

        self.work, self.study = work, work.study
        told = config.recipe(
            work.told_of(one.name), {"evaluate.tasks": work.tasks(one.name, False), "evaluate.drift": False}
        )
        self.recipe = config.recipe(told, {"model.model_name_or_path": model})
        self.tasks = measured_tasks(self.recipe)
        self.place = work.place / "prompted" / one.name / short(model)
        rows = one.parts["train"]
        self.known = [str(row[self.study.intent]) for row in rows]
        self.examples = [row["prompt"] + row["completion"] for row in rows]
        self.intents = {row["prompt"]: str(row[self.study.intent]) for row in one.parts["test"]}
        self._subject: Any = None

    @property
    def subject(self) -> Any:
        """Loaded where something has yet to be asked."""
        if self._subject is None:
            from luthier.verbs.load import load

            told = self.recipe
            loaded = load(told.model, "causal_lm")
            self._subject = loaded.subject(told.method("decoding", "decoding"), told.seed)
        return self._subject

    def drawn(self, n: int, seed: int) -> Callable[[], Choose]:
        return partial(drawn, self.examples, n, seed)

    def nearest(self, n: int) -> Callable[[], Choose]:
        return partial(self._nearest, n)

    def _nearest(self, n: int) -> Choose:
        if self.study.retrieve == "bm25":
            return by_words(self.known, self.examples, n, "procedure.retrieve: bm25")
        from luthier.verbs.load import load

        return by_meaning(self.known, self.examples, n, load(self.study.retrieve, "embedding").subject())

    def about(self, name: str, choose: Callable[[], Choose] | None) -> dict[str, Any]:
        """Figures by task and metric, and how long prompts were. Read from the file where the same was asked before."""
        from luthier.evaluation import measure

        file, same = self.place / f"{name}.json", self._same()
        if self.work.given.get("resume") and file.exists():
            kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if kept["asked"] == same:
                return kept
        subject = WithExamples(
            self.subject, choose() if choose else lambda asked: (), self.study.separator, self.intents
        )
        start = time.perf_counter()
        figures = measure(subject, self.tasks).values()  # type: ignore[arg-type]
        n = max(1, len(subject.tokens))
        found = {
            "asked": same, "tasks": figures, "seconds": time.perf_counter() - start,
            "prompt_tokens": sum(subject.tokens.values()) / n, "examples": sum(subject.shown.values()) / n,
            "parameters": sum(p.numel() for p in self.subject.model.parameters()),
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(file, found)
        return found

    def _same(self) -> dict[str, Any]:
        """What decides the answers beside the name of the file."""
        told = self.recipe.resolved()
        own = {k: config.plain(getattr(self.study, k)) for k in ("retrieve", "intent", "separator")}
        return {**own, **{k: told[k] for k in ("model", "decoding", "evaluate", "data", "seed")}}
