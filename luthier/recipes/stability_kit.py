"""Stability kit: train small sets steadily, and choose freezing, layer-wise rates or re-initialisation on held-out rows.

    always     Adam with bias correction, warm-up over 10 %, linear decay, weight decay 0.01 on matrices only, clipping at 1,
               and epochs enough for `steps` steps
    recommend  large (18 blocks and more) or ELECTRA -> llrd;   regression with < 1,000 rows -> reinit;   else -> freeze
    grid       full fine-tuning and the recommended technique in three strengths, each under `seeds` seeds
    choose     the best mean on held-out rows; a warning where the spread over seeds is larger than what it gains

    steps   of training, where the recipe says nothing
Start:      `stability: auto` in a recipe, or `procedure: stability_kit`. What was compared is said and written to
            stability.json; never silent.
Cost:       4 * seeds runs of the recipe, and the last one, which is the run folder. Keys that the recipe sets are kept.
Paper:      Tinn et al., 2023, "Fine-Tuning Large Neural Language Models for Biomedical Natural Language Processing",
            arXiv:2112.07869.
Departures: the paper recommends by its own tables; here the recommendation opens a small grid, judged on held-out rows. The
            last run has the recipe's own seed: no seed is picked. A re-initialised block has the head's rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.core import config, runs
from luthier.core.anatomy import Anatomy, anatomy
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.recipes._seeds import Seeds, train_once
from luthier.recipes._stages import resumed

LARGE, SMALL_SET, MOST_EPOCHS = 18, 1000, 100
Setting = dict[str, Any]


@dataclass(frozen=True)
class StabilityKit(Recipe):
    paper: ClassVar[str] = "arXiv:2112.07869"
    cards: ClassVar[tuple[int, ...]] = (46,)

    seeds: int = 3
    steps: int = 200

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {"stability.seeds": 1}

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """Compare, choose, and run what was chosen into `folder`.

        Raises LuthierError where nothing is held out to choose on, or where the recipe names a tuner already.
        """
        from luthier.verbs.run import run

        file = Path(folder) / "stability.json"
        if not (given.get("resume") and file.exists()):
            found = self.compare(recipe, say)
            Path(folder).mkdir(parents=True, exist_ok=True)
            runs.write_json(file, found)

        found = json.loads(file.read_text(encoding="utf-8"))
        chosen = found["chosen"]
        changes = {
            "stability": {"mode": "none"},
            "procedure": None,
            "tuner": chosen["tuner"],
            "train": chosen["train"],
            "output_dir": folder,
        }
        given["resume"] = resumed(folder, given.get("resume"))
        return run(RunRecipe.model_validate({**recipe.model_dump(exclude_unset=True), **changes}), **given)

    def compare(self, told: RunRecipe, say: Callable[[str], None]) -> dict[str, Any]:
        """Every setting of the grid under every seed; the table, the choice and why."""
        from luthier.verbs.load import load
        from luthier.verbs.run import prepare

        if told.tuner["name"] != "full":
            raise LuthierError("stability: auto chooses the tuner: remove the key 'tuner', or set stability: none")
        if told.data.eval is None and not told.data.val_size:
            raise LuthierError("stability: auto chooses on held-out rows: set data.val_size or data.eval")
        ready = prepare(told, say)
        body = anatomy(ready.loaded.model)
        train = self.steadily(told, len(ready.train.examples))
        technique, why = recommend(body, told.objective["name"], len(ready.train.examples))
        say(f"stability: {why}: {technique} is compared with full fine-tuning under {self.seeds} seeds")
        classes = ready.loaded.model.config.num_labels if ready.loaded.task == "classification" else None
        names = ready.train.report.label_names

        def fresh() -> Any:
            return load(told.model, ready.loaded.task, classes, names)

        table: list[tuple[Setting, Seeds]] = []
        for setting in [{"name": "full"}, *grid(technique, body)]:
            tuner = config.build("tuners", setting, "tuner")
            one = Seeds(" ".join(str(v) for v in setting.values()))
            for k in range(self.seeds):
                one.outcomes.append(
                    train_once(
                        fresh,
                        tuner,
                        ready.objective,
                        ready.train.examples,
                        ready.held_out.examples,
                        train,
                        told.seed + k,
                    )
                )
            say(f"stability: {one.text()}")
            table.append((setting, one))
        setting, best = max(table, key=lambda row: (-row[1].failures, row[1].mean))
        plain = table[0][1]
        gain, spread = best.mean - plain.mean, max(best.sd, plain.sd)
        warning = None
        if setting is not table[0][0] and gain < spread:
            warning = f"{best.name} gains {gain:.3f} over {plain.name}, less than the spread over seeds ({spread:.3f})"
            say(f"stability: WARNING: {warning}")
        say(f"stability: chosen on {len(ready.held_out.examples)} held-out rows: {best.name}")
        return {
            "recommended": technique, "why": why, "held_out_rows": len(ready.held_out.examples),
            "table": [one.row() for _, one in table], "warning": warning,
            "chosen": {"tuner": setting, "train": train.model_dump(exclude_unset=True)},
        }  # fmt: skip

    def steadily(self, told: RunRecipe, rows: int) -> config.TrainSettings:
        """The recipe's training with the settings that always help, where it does not say otherwise."""
        steady: dict[str, Any] = {
            "adam_correct_bias": True, "warmup_ratio": 0.1, "lr_scheduler_type": "linear", "weight_decay": 0.01,
            "decay_vectors": False, "max_grad_norm": 1.0,
        }  # fmt: skip
        said = told.train.model_fields_set
        if not said & {"max_steps", "num_train_epochs"}:
            a_step = told.train.per_device_train_batch_size * told.train.gradient_accumulation_steps
            usual = told.train.num_train_epochs
            steady["num_train_epochs"] = float(min(MOST_EPOCHS, max(usual, math.ceil(self.steps * a_step / rows))))
        given = told.train.model_dump(exclude_unset=True)
        return config.TrainSettings.model_validate({**steady, **given})


def recommend(body: Anatomy, objective: str, rows: int) -> tuple[str, str]:
    """(technique, reason) of the paper's tables."""
    if objective == "regression" and rows < SMALL_SET:
        return "reinit", f"a regression on {rows} rows"
    if len(body.layers) >= LARGE or body.model_type == "electra":
        return "llrd", f"a model of {len(body.layers)} blocks ({body.model_type})"
    return "freeze", f"a model of base size ({len(body.layers)} blocks)"


def grid(technique: str, body: Anatomy) -> list[Setting]:
    """Three strengths of a technique."""
    top = max(1, len(body.layers) // 2)
    strengths: dict[str, list[Setting]] = {
        "freeze": [{"lowest": share} for share in (0.25, 0.5, 0.75)],
        "llrd": [{"decay": decay} for decay in (0.8, 0.9, 0.95)],
        "reinit": [{"layers": n} for n in sorted({1, min(2, top), min(3, top)})],
    }
    return [{"name": technique, **options} for options in strengths[technique]]
