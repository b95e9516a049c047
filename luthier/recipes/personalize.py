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

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

import luthier
from luthier.core import catalog, config, runs
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.core.runs import RunFolder
from luthier.data import RowTable
from luthier.recipes._projects import PARTS, Project, by_project, split_project
from luthier.recipes._stages import forget_checkpoints
from luthier.recipes._summary import ELSEWHERE, INTRINSIC, Cell, Summary

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
        from luthier.verbs.compare import changes_of

        out = {}
        for name, changes in (told.compare.methods or SCHEMES).items():
            own = changes if name not in SCHEMES else {**SCHEMES[name], **changes}
            named = config.recipe(told, {"compare.methods": {name: own}})
            tuner = config.recipe(told, changes_of(name, named)).method("tuners", "tuner")
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
            **runs.provenance(), "kind": "procedure", "name": recipe.name or place.path.name, "status": "running",
            "recipe": recipe.resolved(),
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
        from luthier.verbs.compare import kept_results
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
        if not (given.get("resume") and kept_results(folder / "stage-0", one)):
            unfinished = given.get("resume") and (folder / "stage-0" / "run.json").exists()
            quiet, callbacks = given.get("quiet", False), given.get("callbacks", ())
            run(one, resume=True if unfinished else None, quiet=quiet, callbacks=callbacks)
        forget_checkpoints([folder / "stage-0"])
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
        forget_checkpoints(cell.folder for cell in found)
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


def _report(folder: Path) -> Path:
    from luthier.report import write_personalize_report

    return write_personalize_report(folder)
