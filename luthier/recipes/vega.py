"""Vega: a bag of tricks for encoders and their tasks, each of which can be switched on alone.

    pretraining   phase 1: objective rtd on raw text;  phase 2: rtd + `contrast` * sentence_contrast, fewer steps, lower rate
    intermediate  the encoder is tuned on another labelled task first; the head of that task is dropped
    calibration   labels that a model which never saw the row doubts are blended with what it says (`_relabel.py`)
    transduction  rows without labels, the test inputs among them, join the training rows under the labels that a model tuned
                  on those is sure of
    adversary     the task's objective is put inside objective adversarial, in the last stage

    tricks      which of these, done in this order
    pretrain    {data, train, second}: rows of text, keys of `train` in both phases, and those that differ in phase 2
    contrast    weight of sentence_contrast;  rtd, sentences  options of the two objectives
    task        {data, objective, train} of the intermediate task
    folds       K of the out-of-fold models;  effort  their steps, as a share of the recipe's;  rho  how much a doubted label
                gives way: 0 leaves it
    unlabelled  source of rows without labels; labels that it has are thrown away before they are read
    threshold   how sure the model must be of such a row;  share  what the row counts
    push        options of objective adversarial: strength, steps, step_size, ...
Start:      `procedure: vega` with objective classification and rows of type labelled. What each trick did is said and
            written to RUN/vega.json, which also says whether the run is transductive.
Table:      `luthier compare` with {calibration: {procedure.tricks: [calibration]}, ...} measures each trick alone.
Cost:       calibration: K * effort runs more; transduction: one; adversary: about three passes a step in place of one.
Paper:      Zhong et al., 2023, "Bag of Tricks for Effective Language Model Pretraining and Downstream Adaptation: A Case
            Study on GLUE", arXiv:2302.09268; doubted labels: Northcutt et al., 2021, "Confident Learning",
            arXiv:1911.00068.
Departures: the report names its tricks and gives hardly a formula, so calibration and transduction are readings of it. One
            round of each; out-of-fold models and the labeller are tuned under the recipe's own objective. The encoder's
            attention is its own: disentangled where the model named is a DeBERTa. No choice of tricks by development rows
            and no ensemble over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from luthier.core import runs
from luthier.core.batch import LabelledExample
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.recipes._relabel import confident, folds, joined, out_of_fold, suspects, targets, with_targets
from luthier.recipes._seeds import outputs, trained
from luthier.recipes._stages import finished, resumed, stage
from luthier.verbs.run import Prepared, prepare, run

Trick = Literal["pretraining", "intermediate", "calibration", "transduction", "adversary"]
SINGLE = "single_label_classification"


@dataclass(frozen=True)
class Vega(Recipe):
    paper: ClassVar[str] = "arXiv:2302.09268"
    cards: ClassVar[tuple[int, ...]] = (3,)

    tricks: tuple[Trick, ...] = ("calibration", "adversary")
    pretrain: dict[str, Any] = field(default_factory=dict)
    contrast: float = 0.5
    rtd: dict[str, Any] = field(default_factory=dict)
    sentences: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    folds: int = 5
    effort: float = 0.5
    rho: float = 0.5
    unlabelled: Any = None
    threshold: float = 0.9
    share: float = 0.5
    push: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def small(cls) -> dict[str, Any]:
        steps = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1}
        return {
            "procedure.folds": 2, "procedure.pretrain.train": steps, "procedure.pretrain.second": {},
            "procedure.task.train": steps, "procedure.threshold": 0.0,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """Every stage into `folder`. Raises LuthierError where a trick lacks what it works on, or does not fit the task."""
        self._fits(recipe)
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        start = self._pretrained(home, recipe, say, given)
        start = self._taught(home, start, recipe, say, given)
        told = stage(recipe, output_dir=folder, model=start, objective=self._objective(recipe))
        found = self._labels(home, stage(told, objective=recipe.objective), say, bool(given.get("resume")))
        found |= {"tricks": list(self.tricks), "transductive": "yes" if "transduction" in self.tricks else "no"}
        say(f"vega: tricks: {', '.join(self.tricks) or 'none'}; transductive: {found['transductive']}")

        def change(made: Prepared) -> Prepared:
            rows = found.pop("rows", None)
            if rows is not None:
                report = replace(made.train.report, examples=len(rows))
                made = replace(
                    made, train=replace(made.train, examples=rows, lengths=[len(e) for e in rows], report=report)
                )
            return replace(made, told=recipe)

        done = run(told, change=change, **{**given, "resume": resumed(folder, given.get("resume"))})
        runs.write_json(home / "vega.json", {k: v for k, v in found.items() if k != "rows"})
        return done

    def _fits(self, recipe: RunRecipe) -> None:
        needs = {
            "pretraining": ("pretrain", "data"),
            "intermediate": ("task", "data"),
            "transduction": ("unlabelled", ""),
        }
        for trick, (key, inside) in needs.items():
            told = getattr(self, key)
            if trick in self.tricks and not (told.get(inside) if inside else told):
                raise ConfigError(f"recipe: trick '{trick}' needs procedure.{key}{f'.{inside}' if inside else ''}")
        if self.folds < 2 or not 0 <= self.rho <= 1:
            raise ConfigError("recipe: procedure.folds must be at least 2, procedure.rho between 0 and 1")
        objective = recipe.method("objectives", "objective")
        if objective.task != "classification" or SINGLE not in getattr(objective, "problems", ()):
            raise ConfigError(f"recipe: vega is for classes; objective '{objective.name}' has none: use classification")

    def _objective(self, recipe: RunRecipe) -> dict[str, Any]:
        if "adversary" not in self.tricks:
            return recipe.objective
        return {"name": "adversarial", "of": recipe.objective, **self.push}

    # ----------------------------------------------------------------------------------- what the encoder is

    def _pretrained(self, home: Path, recipe: RunRecipe, say: Callable[[str], None], given: Mapping[str, Any]) -> Any:
        """The model of the next stage, after both phases of pretraining where they are asked for."""
        start = recipe.model.model_dump(exclude_unset=True)
        if "pretraining" not in self.tricks:
            return start
        rtd = {"name": "rtd", **self.rtd}
        sentences = {"name": "sentence_contrast", **self.sentences, "task": "masked_lm", "weight": self.contrast}
        phases = ({"objective": rtd}, {"objective": {"name": "mixed", "parts": [rtd, sentences]}})
        for k, told in enumerate(phases, 1):
            second = self.pretrain.get("second", {}) if k == 2 else {}
            train = {**self.pretrain.get("train", {}), **second}
            start = self._stage(home / f"phase-{k}", start, {**told, "data": self.pretrain["data"], "train": train},
                                recipe, say, given)  # fmt: skip
        return start

    def _taught(self, home: Path, start: Any, recipe: RunRecipe, say: Callable[[str], None], given: Any) -> Any:
        """The same after the intermediate task, as an encoder without a head."""
        if "intermediate" not in self.tricks:
            return start
        from luthier.verbs.load import calm, load

        told = {"objective": recipe.objective, "train": recipe.train.model_dump(exclude_unset=True), **self.task}
        tuned = self._stage(home / "intermediate", start, told, recipe, say, given)
        loaded, body = load(tuned["model_name_or_path"], "classification"), home / "body"

        def write(part: Path) -> None:
            with calm():
                loaded.model.base_model.save_pretrained(part)
            loaded.tokenizer.save_pretrained(part)

        runs.write_folder(body, write)
        return {**start, "model_name_or_path": str(body)}

    def _stage(
        self, place: Path, start: Any, told: Mapping[str, Any], recipe: RunRecipe, say: Callable[[str], None],
        given: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """One run of every weight, with nothing measured; the model that it made."""
        told = {
            **told, "model": start, "seed": recipe.seed, "output_dir": str(place), "name": f"vega: {place.name}",
            "evaluate": {"drift": False},
        }  # fmt: skip
        one = RunRecipe.model_validate(told)
        if not (given.get("resume") and finished(place, one)):
            say(f"vega: {place.name}")
            run(one, **{**given, "resume": resumed(place, given.get("resume")), "bases": None})
        return {**start, "model_name_or_path": str(place)}

    # -------------------------------------------------------------------------------------- what the labels are

    def _labels(self, home: Path, told: RunRecipe, say: Callable[[str], None], resume: bool) -> dict[str, Any]:
        """`rows` to train on, where they are others than the recipe's, and what was found on the way."""
        found: dict[str, Any] = {}
        if not {"calibration", "transduction"} & set(self.tricks):
            return found
        ready = prepare(told)
        if getattr(ready.train.source, "problem_type", None) != SINGLE:
            raise LuthierError("vega: calibration and transduction are for rows of one class each")
        rows: list[LabelledExample] = ready.train.examples
        labels = np.array([e.label for e in rows])
        if "calibration" in self.tricks and self.rho > 0:
            p = _kept(home / "out-of-fold.json", resume, lambda: self._out_of_fold(ready, rows, told.seed, say))
            doubted = suspects(p, labels)
            rows = with_targets(rows, targets(p, labels, doubted, self.rho))
            found["calibration"] = {
                "rows": len(rows), "doubted": int(doubted.sum()), "doubted_rows": [rows[i].row for i in doubted.nonzero()[0]],
            }  # fmt: skip
            say(f"vega: {doubted.sum():,} of {len(rows):,} labels are doubted, and blended with rho {self.rho:g}")
        if "transduction" in self.tricks:
            more = self._unlabelled(ready)
            p = _kept(home / "unlabelled.json", resume, lambda: self._says(ready, rows, more, told.seed))
            kept = confident(p, np.bincount(labels, minlength=p.shape[1]) / len(labels), self.threshold)
            found["transduction"] = {"unlabelled": len(more), "kept": len(kept)}
            say(f"vega: {len(kept):,} of {len(more):,} rows without labels join, each as {self.share:g} of a row")
            rows = joined(rows, more, p, kept, self.share) if kept else rows
        return found | {"rows": rows}

    def _out_of_fold(
        self, ready: Prepared, rows: list[LabelledExample], seed: int, say: Callable[[str], None]
    ) -> np.ndarray:
        parts = folds(rows, self.folds, seed)
        if any(not part for part in parts):
            raise LuthierError(f"vega: procedure.folds {self.folds} is more than there are different texts")
        say(f"vega: {self.folds} models, each on the rows that the others judge")
        return out_of_fold(rows, parts, lambda train, held: self._says(ready, train, held, seed, self.effort))

    def _says(
        self,
        ready: Prepared,
        train: Sequence[LabelledExample],
        rows: Sequence[LabelledExample],
        seed: int,
        effort: float = 1.0,
    ) -> np.ndarray:
        """(n, C) probabilities of `rows` by a model tuned on `train` for a share of the recipe's steps."""
        from luthier.verbs.load import load

        told, names = ready.recipe, ready.train.report.label_names
        settings = told.train
        if settings.max_steps > 0:
            settings = settings.model_copy(update={"max_steps": math.ceil(effort * settings.max_steps)})
        else:
            settings = settings.model_copy(update={"num_train_epochs": effort * settings.num_train_epochs})
        tuner = told.method("tuners", "tuner").for_data(ready.loaded.tokenizer, names)
        loop = trained(lambda: load(told.model, "classification", len(names), names), tuner, ready.objective, train,
                       settings, seed)  # fmt: skip
        return torch.from_numpy(outputs(loop, rows)).double().softmax(-1).numpy()

    def _unlabelled(self, ready: Prepared) -> list[LabelledExample]:
        """Rows under a label that is nobody's: any that they had is taken away first."""
        from luthier import data

        told, names = ready.recipe.data, ready.train.report.label_names
        table = data.read(self.unlabelled, columns=told.columns, template=told.template, seed=ready.recipe.seed)
        bare = [
            {k: v for k, v in row.items() if k not in ("label", "labels")} | {"label": names[0]} for row in table.rows
        ]
        given: dict[str, Any] = {"tokenizer": ready.loaded.tokenizer, "type": ready.train.source}
        return data.prepare(replace(table, rows=bare), **given).examples  # type: ignore[return-value]


def _kept(file: Path, resume: bool, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Probabilities from a file that a stopped run left, or made now and written."""
    if not (resume and file.exists()):
        runs.write_json(file, make().tolist())
    return np.array(json.loads(file.read_text(encoding="utf-8")))
