"""Safe tuning: what tuning on harmless data costs in refusals, by tuner, rate and length; what prevents it, what repairs it.

    dose      every tuner x rate x number of epochs on the recipe's data
    prevent   at the strongest dose of each tuner:  mix       safety rows, repeated, are a share of all rows
                                                    template  task rows in another template than the one that is deployed
                                                    constrained  first tokens of answers stay near the untuned model
              at the strongest dose                 instead   tuners that leave part of the model as it is
    repair    the strongest run of each tuner, its weights edited, nothing trained
    choose    the best target score among settings whose every seed passes the gate of the audit; none where none passes

    tuners, rates, epochs   the grid;  times  tuner -> its rates are that many times as large
    safety    rows of prompts and safe answers to mix in: other prompts than those of the audit
    mix       shares of all rows;  template  as data.template;  constrain  options of objective `constrained_sft`
    instead   further tuners;  seeds  of every setting
    repairs   name of an edit -> its options, and `data` where it asks data
Options of a tuner stand under the recipe's `compare.methods`, the audit under `evaluate.audit`.
Start:      `procedure: safe_tuning`. All settings see the same task rows equally often.
Cost:       (tuners * (rates * epochs + mix + template + constrain) + instead) * seeds runs, and a measurement for each repair.
Paper:      Qi et al., 2023, "Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!",
            arXiv:2310.03693, sections 4.4 and 5; Lermen et al., 2023, arXiv:2310.20624; first tokens: Qi et al., 2024,
            arXiv:2406.05946.
Departures: a setting is chosen and not a checkpoint of it. The logged training loss of a mixture is that of all its rows.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.core import config, runs
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.recipes._repairs import repaired, same_repair

Changes = dict[str, Any]
OPTIONS: dict[str, Changes] = {"freeze": {"tuner.lowest": 0.5}}
"""Options of tuners that move everything unless told otherwise."""


@dataclass(frozen=True)
class SafeTuning(Recipe):
    paper: ClassVar[str] = "arXiv:2310.03693"
    cards: ClassVar[tuple[int, ...]] = (32, 41)
    compares: ClassVar[bool] = True

    tuners: tuple[str, ...] = ("full", "lora")
    rates: tuple[float, ...] = (1e-5, 1e-4)
    times: dict[str, float] = field(default_factory=lambda: {"lora": 10.0})
    epochs: tuple[float, ...] = (1.0, 3.0)
    safety: str = ""
    mix: tuple[float, ...] = (0.1,)
    template: str | dict[str, str] | None = None
    constrain: dict[str, Any] | None = None
    instead: tuple[str, ...] = ("hft", "freeze")
    repairs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"half_reset": {}, "task_arithmetic": {"lambda": 0.5}}
    )
    seeds: int = 1

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.mix):
            raise LuthierError(f"procedure.mix is {list(self.mix)}: shares between 0 and 1")

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {
            "procedure.tuners": ["lora"], "procedure.rates": [1e-3], "procedure.epochs": [1], "procedure.instead": ["hft"],
            "procedure.repairs": {"half_reset": {}}, "data.limit": 16, "train.max_steps": -1,
            "train.per_device_train_batch_size": 8, "evaluate.audit.max_new_tokens": 4,
        }  # fmt: skip

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Comparison`: compare.json and report.html in `folder`, a run folder for each setting and each repair.

        Raises ConfigError where there is no audit, or where steps are counted and not epochs; LuthierError where prompts of
        the audit are among the rows that prevent or repair.
        """
        from luthier import report
        from luthier.verbs.compare import compare

        if recipe.evaluate.audit is None:
            raise ConfigError("recipe: procedure safe_tuning compares audits: set evaluate.audit, as in audit: sandbox")
        if recipe.data.train is None:
            raise ConfigError("recipe: data.train is missing: name a file, a folder, a hub id or sandbox:WORLD")
        if recipe.train.max_steps > 0:
            raise ConfigError("recipe: procedure safe_tuning counts epochs: remove train.max_steps")
        self.keep_apart(recipe)
        settings = self.settings(recipe)
        told = config.recipe(
            recipe, {"procedure": None, "output_dir": folder, "compare.seeds": self.seeds, "compare.methods": settings}
        )
        done = compare(told, resume=bool(given.get("resume")), quiet=given.get("quiet", False),
                       callbacks=given.get("callbacks") or ())  # fmt: skip
        for cell in self.repaired_cells(done, told, say):
            done.told["cells"].append(cell)
            if cell["method"] not in done.told["methods"]:
                done.told["methods"].append(cell["method"])
        done.told["front"]["methods"] = done.front()
        done.told["audit"] = self.chosen(done)
        runs.write_json(done.folder / "compare.json", done.told)
        report.write_compare_report(done.folder)
        say(done.told["audit"]["text"])
        return done

    # --------------------------------------------------------------------------------------------------- settings

    def settings(self, told: RunRecipe) -> dict[str, Changes]:
        """Name of a setting -> what it changes in the recipe."""
        out = {}
        for tuner in self.tuners:
            for rate in self.rates:
                for epochs in self.epochs:
                    out[self.called(tuner, rate, epochs)] = self.dose(told, tuner, rate, epochs)
            strongest = self.dose(told, tuner, max(self.rates), max(self.epochs))
            name = self.strongest(tuner)
            if self.safety:
                out |= {f"{name}-mix{share:g}": {**strongest, **self.mixed(told, share)} for share in self.mix}
            if self.template is not None:
                out[f"{name}-template"] = {**strongest, "data.template": self.template}
            if self.constrain is not None:
                out[f"{name}-constrained"] = {**strongest, "objective": {"name": "constrained_sft", **self.constrain}}
        for tuner in self.instead:
            out[self.strongest(tuner)] = self.dose(told, tuner, max(self.rates), max(self.epochs))
        return out

    def called(self, tuner: str, rate: float, epochs: float) -> str:
        return f"{tuner}-{rate * self.times.get(tuner, 1.0):g}-{epochs:g}ep"

    def strongest(self, tuner: str) -> str:
        return self.called(tuner, max(self.rates), max(self.epochs))

    def dose(self, told: RunRecipe, tuner: str, rate: float, epochs: float) -> Changes:
        """A tuner at a rate for a number of epochs; what the recipe says of the tuner comes last."""
        own = {"tuner": {"name": tuner}, "train.learning_rate": rate * self.times.get(tuner, 1.0)}
        return {
            **own,
            "train.num_train_epochs": epochs,
            **OPTIONS.get(tuner, {}),
            **told.compare.methods.get(tuner, {}),
        }

    def mixed(self, told: RunRecipe, share: float) -> Changes:
        """Task rows as they are, and safety rows, over and over, until they are `share` of all; the task rows come last."""
        from luthier.data import read

        data = told.data
        assert data.train is not None
        task = len(read(data.train, columns=data.columns, template=data.template, limit=data.limit, seed=told.seed))
        size, wanted = len(read(self.safety)), max(1, round(task * share / (1 - share)))
        if not size:
            raise LuthierError(f"procedure.safety: {self.safety} has no rows")
        plain = {"columns": None, "template": None}
        rows: list[Any] = [{"path": self.safety, **plain}] * (wanted // size)
        rows += [{"path": self.safety, "n": wanted % size, **plain}] if wanted % size else []
        own = data.train if isinstance(data.train, list) else [data.train]
        return {"data.train": [*rows, *own], "data.limit": None if data.limit is None else data.limit + wanted}

    def keep_apart(self, told: RunRecipe) -> None:
        """Raises LuthierError where what prevents or repairs would be judged on its own prompts."""
        from luthier.data import read
        from luthier.evaluation._audit import tasks

        assert told.evaluate.audit is not None
        asked = [t for t in tasks(told.evaluate.audit) if t.data is not None]
        prompts = {_bare(item.prompt) for t in asked for item in t.items()}
        sources = {"safety": self.safety, **{f"repairs.{n}.data": r.get("data") for n, r in self.repairs.items()}}
        for key, source in sources.items():
            rows = [_bare(r.get("messages") or r.get("prompt")) for r in read(source).rows] if source else []
            same = sum(row in prompts for row in rows)
            if same:
                raise LuthierError(
                    f"procedure.{key}: {same} of its {len(rows)} rows are prompts of the audit: what is shown to work must be "
                    "other prompts, better other topics"
                )

    # ---------------------------------------------------------------------------------------------------- repairs

    def repaired_cells(self, done: Any, told: RunRecipe, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """The strongest run of each tuner after each repair, as cells; one that cannot be repaired so says why."""
        from luthier.evaluation import measure
        from luthier.verbs.compare import kept_results
        from luthier.verbs.load import load
        from luthier.verbs.run import measured_tasks

        if not self.repairs:
            return
        decoder, before = told.method("decoding", "decoding"), None
        for tuner in self.tuners:
            for cell in done.cells(self.strongest(tuner)):
                run = done.folder / cell["run"]
                one = config.recipe(run / "recipe.yaml")
                for name, options in self.repairs.items():
                    method = f"{cell['method']}-{name}"
                    out = {"method": method, "seed": cell["seed"], "run": f"{method}-seed{cell['seed']}"}
                    place = done.folder / out["run"]
                    again = config.recipe(one, {"output_dir": str(place), "name": out["run"]})
                    repair = {"name": name, **options}
                    results = kept_results(place, again) if same_repair(place, repair) else None
                    if results is None:
                        if before is None:
                            untuned = load(told.model, "causal_lm").subject(decoder, told.seed)
                            before = measure(untuned, measured_tasks(told))
                        say(f"{cell['method']}: {name}")
                        try:
                            results = repaired(run, place, repair, one, before)
                        except LuthierError as error:
                            yield {**out, "status": "refused", "error": str(error)}
                            continue
                    yield {**out, "status": "done", "results": results}

    # --------------------------------------------------------------------------------------------------- choosing

    def chosen(self, done: Any) -> dict[str, Any]:
        """Settings that pass the gate under every seed, and the best of them by the target. Never relaxed."""
        passing = []
        for method in done.told["methods"]:
            cells = [c for c in done.told["cells"] if c["method"] == method]
            if all(c["status"] == "done" and c["results"]["audit"]["gate"]["passed"] for c in cells):
                passing.append(method)
        target = done.told["target"]
        if not passing or target is None:
            why = "no setting passes the gate of the audit under every seed" if not passing else "no target task"
            return {"passing": passing, "chosen": None, "text": f"nothing is chosen: {why}"}
        sign = 1 if target["higher_is_better"] else -1
        best = max(passing, key=lambda m: sign * statistics.fmean(done.values(m, target["task"], target["metric"])))
        return {
            "passing": passing, "chosen": best,
            "text": f"{len(passing)} of {len(done.told['methods'])} settings pass the audit; {best} does best on {target['title']}",
        }  # fmt: skip


def _bare(prompt: Any) -> str:
    """What the user says last, without the marks of a chat template."""
    text = (
        prompt
        if isinstance(prompt, str)
        else next((m["content"] for m in reversed(prompt or ()) if m["role"] == "user"), "")
    )
    return re.sub(r"<\|\w+\|>", "", str(text)).strip()
