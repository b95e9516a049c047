"""FIRST: tune a teacher gently, choose how its likeliest tokens are re-calibrated, and distil them into a smaller model.

    1  teacher    the recipe's rows, objective and training at a small rate, on `teacher`            RUN/teacher
    2  store      its k likeliest tokens at every position that is trained on, asked once            RUN/teacher.safetensors
    3  choose     no calibration, and every c of `grid`: the teacher, calibrated so, answers held-out rows; least ECE, then
                  accuracy. No model is trained for it, and no row of a task is looked at
    4  baselines  the model tuned on the rows' own tokens, and the same with a temperature T on its logits, chosen likewise
    5  student    objective `first` from the store                                                   RUN

    teacher      a model, folder or run with the recipe's tokenizer; tune: false takes it as it is
    tuner, train of the teacher: a tuner, and keys of `train` that differ. Its rate is 2e-6 where nothing is said here
    k, calibration, support, c_student   as in objectives/first
    grid         values of c; left out: a few for each calibration
    task         the task of `evaluate.tasks` whose scorer judges step 3, on held-out rows in the place of its own: its first
                 one with scorer calibration where left out. Held-out rows must have the columns that the task reads
    baselines    false: step 4 is left out. It costs one more run
Result:     RUN is the student with its report (reliability diagrams before and after are in it; RUN/teacher and RUN/one-hot
            have theirs). first.json holds the captured mass, the table of step 3 and what step 4 measured.
Paper:      Shum et al., 2024, arXiv:2408.12168, section 3.
Departures: temperature on log-probabilities by default, where the public code puts probabilities through the softmax
            (`calibration: probabilities`). "No calibration" is always among what can be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor, nn

from luthier.core import runs
from luthier.core.config import ConfigError, ModelSettings
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import Recipe
from luthier.core.teacher import TeacherStore
from luthier.evaluation.calibration import Calibration
from luthier.objectives.first import FIRST as Objective
from luthier.recipes._stages import finished, held_out_rows, resumed
from luthier.verbs.load import Loaded, load
from luthier.verbs.run import Prepared, measured_tasks, run, teacher_of

GENTLE = {"learning_rate": 2e-6}
"""Keys of `train` for the teacher, where the procedure does not say otherwise."""
GRIDS = {
    "temperature": (1.25, 1.5, 2.0, 2.5, 3.0), "probabilities": (0.1, 0.2, 0.3, 0.4, 0.5), "smoothing": (0.05, 0.1, 0.2, 0.3),
}  # fmt: skip
Figures = dict[str, Any]


@dataclass(frozen=True)
class FIRST(Recipe):
    paper: ClassVar[str] = "arXiv:2408.12168"
    cards: ClassVar[tuple[int, ...]] = (15,)

    teacher: str | dict[str, Any]
    tune: bool = True
    tuner: dict[str, Any] = field(default_factory=lambda: {"name": "full"})
    train: dict[str, Any] = field(default_factory=dict)
    k: int = 5
    calibration: Literal["temperature", "probabilities", "smoothing"] = "temperature"
    grid: tuple[float, ...] = ()
    support: Literal["tail", "renorm", "softmax"] = "tail"
    c_student: float = 1.0
    task: str = ""
    baselines: bool = True

    @classmethod
    def example(cls) -> Self:
        return cls(teacher="nano-1m")

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {"procedure.train.max_steps": 3, "procedure.grid": [2.0]}

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """All stages into `folder`. Raises LuthierError for rows, tasks or a teacher that do not fit."""
        task = self._judge(recipe)
        home, kept = Path(folder), {} if given.get("bases") is None else given["bases"]
        home.mkdir(parents=True, exist_ok=True)
        teacher = self._tuned(home, recipe, say, given) if self.tune else self.teacher
        found: Figures = {}
        if self.baselines:
            found = self._one_hot(home, recipe, task, say, {**given, "bases": kept})

        def change(made: Prepared) -> Prepared:
            chosen = self._chosen(home, made, teacher, task, say, bool(given.get("resume")))
            runs.write_json(home / "first.json", {**chosen, "baselines": found})
            rule = self._rule(chosen["chosen"]["calibration"], chosen["chosen"]["c"], str(home / "teacher.safetensors"))
            return replace(made, objective=rule, told=recipe)

        done = run(
            stage(recipe, output_dir=folder), change=change,
            **{**given, "resume": resumed(folder, given.get("resume")), "bases": kept},
        )  # fmt: skip
        self._tell(done.results, found, task.name, say)
        return done

    def _judge(self, recipe: RunRecipe) -> Any:
        """The task of step 3, with held-out rows in place of its own."""
        objective, told = recipe.method("objectives", "objective"), recipe.data
        if objective.task != "causal_lm" or objective.reference:
            raise ConfigError(f"recipe: objective '{objective.name}' does not tune a teacher for first: use sft")
        if told.train is None or (told.eval is None and not told.val_size):
            raise ConfigError("recipe: first chooses c on held-out rows: set data.val_size or data.eval")
        tasks = [t for t in measured_tasks(recipe) if isinstance(t.scorer, Calibration)]
        named = [t for t in tasks if self.task in ("", t.name)]
        if not named:
            raise ConfigError(
                f"recipe: evaluate.tasks has no task{f' {self.task!r}' if self.task else ''} with scorer calibration, by which "
                "first chooses c: add one"
            )
        if told.eval is not None and told.eval == named[0].data:
            raise ConfigError(
                f"recipe: data.eval is what task '{named[0].name}' measures: c must be chosen on other rows"
            )
        return replace(named[0], data=held_out_rows(recipe), limit=recipe.evaluate.limit)

    def _rule(self, calibration: Any, c: float, teacher: str | dict[str, Any] = "") -> Objective:
        return Objective(teacher or self.teacher, self.k, calibration, c, self.support, self.c_student)

    # ---------------------------------------------------------------------------------------------- stages

    def _tuned(
        self, home: Path, recipe: RunRecipe, say: Callable[[str], None], given: Mapping[str, Any]
    ) -> str | dict[str, Any]:
        """The folder of the tuned teacher."""
        place = home / "teacher"
        model = {"model_name_or_path": self.teacher} if isinstance(self.teacher, str) else self.teacher
        train = {**recipe.train.model_dump(exclude_unset=True), **GENTLE, **self.train, "save_delta": False}
        told = stage(
            recipe, output_dir=str(place), model=model, tuner=self.tuner, train=train, name=named(recipe, "teacher")
        )
        if not (given.get("resume") and finished(place, told)):
            say("first: the teacher")
            run(told, **{**given, "resume": resumed(place, given.get("resume")), "bases": None})
        return str(place)

    def _one_hot(
        self, home: Path, recipe: RunRecipe, task: Any, say: Callable[[str], None], given: Mapping[str, Any]
    ) -> Figures:
        """What the model tuned on the rows' own tokens measures, as it is and with a temperature on its logits."""
        place = home / "one-hot"
        told = stage(recipe, output_dir=str(place), name=named(recipe, "one-hot"))
        if not (given.get("resume") and finished(place, told)):
            say("first: the one-hot baseline")
            run(told, **{**given, "resume": resumed(place, given.get("resume"))})
        tuned = load(str(place))
        grid = self.grid if self.grid and self.calibration == "temperature" else GRIDS["temperature"]
        rows = [{"T": T, **self._asked(tuned, task, divided(T))} for T in (1.0, *grid)]
        T = least(rows)["T"]
        tested = next(t for t in measured_tasks(recipe) if t.name == task.name)
        return {
            "one_hot": self._asked(tuned, tested, divided(1.0)),
            "one_hot_with_temperature": {"T": T, **self._asked(tuned, tested, divided(T))},
        }

    def _chosen(
        self,
        home: Path,
        made: Prepared,
        teacher: str | dict[str, Any],
        task: Any,
        say: Callable[[str], None],
        resume: bool,
    ) -> Figures:
        """Steps 2 and 3: writes the store; what its mass is, the table of c, and the choice."""
        file, store = home / "first.json", home / "teacher.safetensors"
        if resume and file.exists() and store.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        asked: TeacherStore = teacher_of(replace(made, objective=self._rule("none", 1.0, teacher)), say)
        asked.save(store)
        settings = ModelSettings.model_validate(teacher) if isinstance(teacher, dict) else teacher
        model = load(settings, made.loaded.task)
        table = []
        for calibration, c in (("none", 1.0), *((self.calibration, c) for c in self.grid or GRIDS[self.calibration])):
            rule = self._rule(calibration, c)
            table.append({"calibration": calibration, "c": c, **self._asked(model, task, recalibrated(rule))})
            say(f"first: teacher with {calibration} {c:g} on held-out rows: {words(table[-1])}")
        best = least(table)
        say(f"first: chosen: {best['calibration']} {best['c']:g}")
        return {"captured": asked.captured(), "held_out_rows": len(task.items()), "table": table, "chosen": best}

    def _asked(self, model: Loaded, task: Any, change: Callable[[Tensor], Tensor]) -> Figures:
        """Every metric of the task, of a model whose logits are changed."""
        with saying(model.model, change):
            answers = task.scorer.ask(model.subject(), task.items())
        once = np.ones((1, len(answers)))
        return {m: float(task.scorer.aggregate(m, answers)(answers.stats, once)[0]) for m in task.scorer.metrics}

    def _tell(self, results: Mapping[str, Any], found: Figures, task: str, say: Callable[[str], None]) -> None:
        student = {m: v["value"] for m, v in results["tuned"][task].items()}
        for name, figures in {**found, "student": student}.items():
            say(f"first: {name.replace('_', ' ')} on {task}: {words(figures)}")


# --------------------------------------------------------------------------------------------------- helpers


def stage(recipe: RunRecipe, **changes: Any) -> RunRecipe:
    """The recipe of one stage: the whole one without its procedure."""
    return RunRecipe.model_validate({**recipe.model_dump(exclude_unset=True), "procedure": None, **changes})


def named(recipe: RunRecipe, part: str) -> str:
    return f"{recipe.name or 'first'}: {part}"


@contextmanager
def saying(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, the model's logits are `change(logits)`."""

    def changed(module: nn.Module, inputs: Any, out: Any) -> Any:
        out.logits = change(out.logits)
        return out

    handle = model.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def divided(T: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits / T


def recalibrated(rule: Objective) -> Callable[[Tensor], Tensor]:
    """Logits to the log-probabilities that a student of `tail` is taught: its k likeliest re-calibrated, all others as they are."""

    def change(logits: Tensor) -> Tensor:  # (..., V)
        logp = logits.float().log_softmax(-1)
        top = logp.topk(min(rule.k, logp.shape[-1]), -1)
        return logp.scatter(-1, top.indices, rule.calibrated(top.values))

    return change


def least(rows: Sequence[Figures]) -> Figures:
    """The row of the least ECE; among equals the most accurate, then the first."""
    return min(rows, key=lambda row: (row["ece"], -row["accuracy"]))


def words(figures: Figures) -> str:
    return ", ".join(f"{m} {figures[m]:.3f}" for m in ("accuracy", "ece", "trust") if figures.get(m) is not None)
