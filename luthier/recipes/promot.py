"""ProMoT: a soft prompt learns the format of the task first, then the model is tuned behind it, and is served with or without.

    stage 1   min_P      L([P; E(x)], y)          P (m, D) in front of the embedded input, the model frozen
    stage 2   min_theta  L([P; E_theta(x)], y)    the same rows and loss; P attached and frozen
    serve     [P; E(x)] for the task and tasks of its format; E(x) alone for everything else

    tuner          what learns in stage 1, as in a recipe: a soft prompt, or another adapter ({name: lora}: absorbs less)
    train          keys of `train` that differ in stage 1. Its rate is 5e-3 where nothing is said here
    by             column of the rows that names their task: one prompt each in stage 1, mixed batches in which each row has
                   its own in stage 2. Tasks of group `target` are then measured with the prompt of their name
    demonstration  one other row of the same task, written out in front of each input in both stages; `separator` between
    mode           two_stages;  or, to compare: joint (P and model together, P at its stage-1 rate), fixed (P as drawn)
Start:      `procedure: promot` with a recipe whose `tuner` tunes the model's own tensors (full by default). Where rows are held
            out, both stages keep the checkpoint with the least loss on them; no retention task is ever looked at.
Result:     RUN is the model without the prompt, RUN/prompt (RUN/prompt-TASK) the same model with it: `luthier generate`,
            `evaluate`, `chat` take either. Tasks of group `target` are measured with the prompt, all others without.
            RUN/stage-1 is the run of stage 1; promot.json tells how long prompts are beside the vocabulary's vectors: more
            than twice is a warning, as such prompts keep the model from learning the rest.
Sequence:   task after task: the next recipe has `model: RUN` of the one before.
Paper:      Wang et al., 2024, "Two-stage LLM Fine-tuning with Less Specialization and More Generalization", ICLR,
            arXiv:2211.00635, section 4.
Departures: AdamW and 20 vectors instead of Adafactor and 100; label smoothing and dropout are the recipe's. Chosen by held-out
            loss rather than by the task's own metric.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from luthier.core import config, runs
from luthier.core.attach import Attached, length_ratio
from luthier.core.batch import Example, SourceTargetExample, TextExample
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, PartialTuner, Recipe
from luthier.recipes._behind import Behind, EachItsPrompt, MeasuredBehind, drawn, from_folders, write_beside
from luthier.recipes._stages import best_kept, finished, resumed, stage
from luthier.verbs.run import Prepared, measured_tasks, run

LONGEST_RATIO = 2.0
FIRST = {"learning_rate": 5e-3}
"""Keys of `train` in the first stage, where neither says otherwise."""
ONE = "default"
"""What the only prompt is called inside a model; peft writes an adapter of this name without a folder of its own."""


@dataclass(frozen=True)
class ProMoT(Recipe):
    paper: ClassVar[str] = "arXiv:2211.00635"
    cards: ClassVar[tuple[int, ...]] = (57,)

    tuner: dict[str, Any] = field(default_factory=lambda: {"name": "prompt_tuning", "tokens": 20})
    train: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    demonstration: bool = False
    separator: str = "\n"
    mode: Literal["two_stages", "joint", "fixed"] = "two_stages"

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {"procedure.train.max_steps": 3}

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """Both stages into `folder`. Raises LuthierError for a tuner, an objective or rows that do not fit."""
        self._fits(recipe)
        names = self._names(recipe)
        _known(recipe, names)
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        starts = {n: self._first_stage(home, n, recipe, say, given) for n in names}
        ready: list[_Second] = []

        def change(made: Prepared) -> Prepared:
            ready.append(self._second_stage(made, starts, recipe, home, say))
            return ready[0]

        told = stage(recipe, output_dir=folder, **self._chosen(recipe, recipe.train, 10))
        told.train.cache_frozen_layers = False  # kept states know of no prompt
        given = {**given, "resume": resumed(folder, given.get("resume"))}
        done = run(told, change=change, **given)
        ready[0].tuner.attached.remove()
        return done

    def _fits(self, recipe: RunRecipe) -> None:
        tuner, first = recipe.method("tuners", "tuner"), config.build("tuners", self.tuner, "procedure.tuner")
        if not isinstance(tuner, PartialTuner):
            raise ConfigError(
                f"recipe: tuner '{tuner.name}' leaves the model's own tensors alone: promot tunes them in its second stage; "
                "use full, hft, freeze, ..."
            )
        if first.artefact != "adapter":
            raise ConfigError(f"recipe: procedure.tuner '{first.name}' is no adapter: use prompt_tuning")
        if (objective := recipe.method("objectives", "objective")).task != "causal_lm":
            raise ConfigError(
                f"recipe: objective '{objective.name}' is not about text that a model writes: promot needs one"
            )
        if recipe.train.cache_frozen_layers is True:
            raise ConfigError("recipe: train.cache_frozen_layers does not go with promot: remove the key")

    def _names(self, recipe: RunRecipe) -> list[str]:
        """One name a prompt."""
        told = recipe.data
        if not self.by or told.train is None:
            return [ONE]
        from luthier import data

        table = data.read(told.train, columns=told.columns, template=told.template, limit=told.limit, seed=recipe.seed)
        if self.by not in table.columns:
            raise LuthierError(f"procedure.by: the rows have no column '{self.by}', only {', '.join(table.columns)}")
        names = sorted({str(row.get(self.by)) for row in table.rows})
        if bad := [n for n in names if not n.replace("_", "").replace("-", "").isalnum()]:
            raise LuthierError(f"procedure.by: '{bad[0]}' cannot be the name of a folder: use letters, digits, - and _")
        return names

    def _chosen(self, recipe: RunRecipe, train: config.TrainSettings, looks: int) -> dict[str, Any]:
        """Training keys that keep the checkpoint with the least held-out loss, and data keys that tell tasks apart."""
        columns = [*recipe.data.keep, *([self.by] if self.by else [])]
        return {
            "train": best_kept(recipe, train, looks),
            "data": {**recipe.data.model_dump(exclude_unset=True), "keep": columns},
        }

    # --------------------------------------------------------------------------------------------- stage 1

    def _first_stage(
        self, home: Path, name: str, recipe: RunRecipe, say: Callable[[str], None], given: Mapping[str, Any]
    ) -> Path:
        """The folder of the adapter that stage 2 is tuned behind."""
        if self.mode != "two_stages":
            return drawn(home / "start" / name, self.tuner, recipe)
        place = home / "stage-1" if name == ONE else home / "stage-1" / name
        keys = {**FIRST, **self.train, "save_delta": False}
        train = config.TrainSettings.model_validate({**recipe.train.model_dump(exclude_unset=True), **keys})
        told = stage(
            recipe, output_dir=str(place), tuner=self.tuner, evaluate={"drift": False}, analysis=None,
            name=f"{recipe.name or 'promot'}: stage 1{'' if name == ONE else f', {name}'}",
            **self._chosen(recipe, train, 5),
        )  # fmt: skip
        if not (given.get("resume") and finished(place, told)):
            say(
                f"promot: stage 1{'' if name == ONE else f' of {name}'}: {self.tuner['name']} in front of the frozen model"
            )

            def change(made: Prepared) -> Prepared:
                return self._rows(made, name)

            run(told, change=change, **{**given, "resume": resumed(place, given.get("resume")), "bases": None})
        return place / "adapter"

    # ----------------------------------------------------------------------------------------------- rows

    def _rows(self, made: Prepared, name: str = ONE) -> Prepared:
        """Rows of one task, or of all, with their demonstrations."""
        train = self._shown(_of_task(made.train, self.by, name), made)
        held = None if made.held_out is None else self._shown(_of_task(made.held_out, self.by, name), made, train)
        return replace(made, train=train, held_out=held)

    def _shown(self, rows: Any, made: Prepared, source: Any = None) -> Any:
        """Rows with a demonstration each, drawn among training rows of the same task by the run's seed."""
        if not self.demonstration:
            return rows
        pool = _of_task(made.train, "", ONE).examples if source is None else made.train.examples
        by_task: dict[str, list[Example]] = {}
        for e in pool:
            by_task.setdefault(str(e.extras.get(self.by)), []).append(e)
        tokenizer, window = made.loaded.tokenizer, made.loaded.subject().window
        rng = random.Random(f"{made.recipe.seed}/demonstrations")
        between = tokenizer(self.separator, add_special_tokens=False)["input_ids"] if self.separator else []
        out = []
        for e in rows.examples:
            others = [o for o in by_task[str(e.extras.get(self.by))] if source is not None or o.row != e.row]
            shown = demonstrated(e, rng.choice(others), between, tokenizer) if others else e
            out.append(shown if window is None or len(shown) <= window else e)
        return replace(rows, examples=out, lengths=[len(e) for e in out])

    # --------------------------------------------------------------------------------------------- stage 2

    def _second_stage(
        self, made: Prepared, starts: dict[str, Path], recipe: RunRecipe, home: Path, say: Callable[[str], None]
    ) -> _Second:
        made = self._rows(made)
        first = config.build("tuners", self.tuner, "procedure.tuner")
        own = {**FIRST, **self.train}["learning_rate"] or first.learning_rate
        inner: Any = made.tuner
        ratio = own / (made.recipe.train.learning_rate or inner.learning_rate)
        tuner = Behind(inner, from_folders(starts), self.mode == "joint", ratio)
        objective = EachItsPrompt(made.objective, tuner, self.by) if self.by else made.objective
        return _Second(
            **{**vars(made), "tuner": tuner, "objective": objective, "told": recipe},
            names=tuple(starts),
            home=home,
            say=say,
        )


@dataclass
class _Second(MeasuredBehind):
    """The second stage: saved with and without the prompt."""

    names: tuple[str, ...] = ()
    home: Path = Path()
    say: Callable[[str], None] = lambda text: None

    def served(self, task: Any) -> AbstractContextManager[Any]:
        several = task.group == "target" and len(self.names) > 1
        return self.tuner.attached.chosen([task.name]) if several else super().served(task)

    def save(self, folder: Path, tuned: Any) -> dict[str, Any]:
        attached = self.tuner.attached
        with attached.without():
            artefact = Prepared.save(self, folder, tuned)
        with attached.as_peft() as wrapped:
            for name in self.names:
                target = folder / ("prompt" if name == ONE else f"prompt-{name}")
                runs.write_folder(target, partial(write_beside, wrapped, name, folder / artefact["path"]))
        self._tell(attached)
        return artefact

    def _tell(self, attached: Attached) -> None:
        """promot.json: how long the prompts are."""
        ratios = {n: length_ratio(attached.model, p) for n, p in attached.prompts.items()}
        warnings = [
            f"the prompt{'' if n == ONE else f' of {n}'} is {r:.1f} times as long as the vocabulary's vectors: prompts above "
            f"{LONGEST_RATIO:g} keep the model from learning; lower procedure.train.learning_rate or its steps"
            for n, r in ratios.items()
            if r > LONGEST_RATIO
        ]
        for n, r in ratios.items():
            self.say(
                f"promot: prompt{'' if n == ONE else f' of {n}'}: {r:.2f} times the length of the vocabulary's vectors"
            )
        for warning in warnings:
            self.say(f"promot: WARNING: {warning}")
        runs.write_json(self.home / "promot.json", {"length_ratio": ratios, "warnings": warnings})


def _known(recipe: RunRecipe, names: list[str]) -> None:
    """Raises before the first stage, which may take hours, for a task that the second could not measure."""
    for task in measured_tasks(recipe):
        if len(names) > 1 and task.group == "target" and task.name not in names:
            raise ConfigError(
                f"evaluate.tasks: '{task.name}' is of group target, and no prompt has its name: call it one of "
                f"{', '.join(names)}, or give it group: retention to be measured without a prompt"
            )


def _of_task(rows: Any, column: str, name: str) -> Any:
    """The rows whose `column` says `name`; all where there is one prompt, or where all tasks are meant."""
    if not column or name == ONE:
        return rows
    kept = [i for i, e in enumerate(rows.examples) if str(e.extras[column]) == name]
    examples = [rows.examples[i] for i in kept]
    report = replace(rows.report, examples=len(examples))
    return replace(
        rows,
        examples=examples,
        lengths=[len(e) for e in examples],
        origins=[rows.origins[i] for i in kept],
        report=report,
    )


def demonstrated(example: Example, shown: Example, between: list[int], tokenizer: Any) -> Example:
    """`example` with `shown` written out in front of it: one BOS, none of its tokens trained. Raises LuthierError."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if isinstance(example, SourceTargetExample) and isinstance(shown, SourceTargetExample):
        end = [eos] if example.ids[-1:] == [eos] else []
        inside = [t for t in shown.ids if t not in end]
        answer = [t for t in shown.target if t != eos]
        return replace(example, ids=[*inside, *between, *answer, *between, *example.ids])
    if not (isinstance(example, TextExample) and isinstance(shown, TextExample)):
        raise LuthierError(
            "procedure.demonstration: rows of this type have no text to write out: use prompts and completions"
        )
    start = [bos] if bos is not None and example.ids[:1] == [bos] else []
    before = shown.ids[len(start) :]
    if between and before[-1:] == [eos]:  # the separator ends it instead
        before = before[:-1]
    lead = [*start, *before, *between]
    return replace(
        example,
        ids=[*lead, *example.ids[len(start) :]],
        counts=[*[False] * len(lead), *example.counts[len(start) :]],
    )
