"""Implicit instruction: how far a base model comes towards following instructions without being tuned to follow them.

    base         as it is
    rules        the base times a table of rules while it writes (decoding/rules), and without each of the rules
    response     tuned on the recipe's answers alone, its users' turns empty (data.responses_only)
    single-NAME  tuned on one narrow task: rows of `single`
    instruction  tuned on the recipe's rows as they are: what the others are measured by

    1  sweep     every tuned arm at every number of epochs and rate; each answers held-out rows of the recipe       RUN/sweep
    2  choose    for each arm the setting with the best score there; among equals the fewest steps
    3  tune      every arm at its setting under every seed, and the untuned arms measured on the same tasks         RUN

    single   name -> rows, or name -> keys of `data` (train, template, columns, ...)
    epochs, rates   the grid;  seeds  of step 3
    rules    options of decoding/rules: a table of texts that the tokenizer knows
    encoder  a sentence embedder: whether the style of each narrow task leaks into answers to other instructions is then told
             (_style.py), for the first seed
    task     of `evaluate.tasks`: its scorer judges step 2. Left out: the first. Held-out rows take the place of its own
Start:      `procedure: implicit_instruction`, and `data.val_size` or `data.eval`. A base model has no chat template: set
            data.chat_template_path, as in tags. Options of an arm stand under `compare.methods`.
Result:     compare.json and the report of a comparison, with the sweep's curves (every metric of the task against steps) and
            the untuned arms.
Cost:       arms * (epochs * rates + seeds) runs, and six measurements of the base.
Paper:      Hewitt et al., 2024, "Instruction Following without Instruction Tuning", arXiv:2409.14254, sections 3 to 5.
Departures: answers are scored against references, where the paper has pairs of answers judged. Rates are swept with the epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from luthier.core import config, runs
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.recipes._stages import held_out_rows
from luthier.recipes._style import told_style

Changes = dict[str, Any]
INSTRUCTION, RESPONSE, SINGLE = "instruction", "response", "single-"
WITHOUT: dict[str, Changes] = {
    "rules": {}, "rules-no-end": {"strength": 0.0}, "rules-no-changes": {"changes": {}}, "rules-no-diversity": {"diversity": 0.0},
}  # fmt: skip
"""The table of rules, and without each of its rules."""


@dataclass(frozen=True)
class ImplicitInstruction(Recipe):
    paper: ClassVar[str] = "arXiv:2409.14254"
    cards: ClassVar[tuple[int, ...]] = (31,)
    compares: ClassVar[bool] = True

    single: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    epochs: tuple[float, ...] = (5.0, 7.0, 10.0, 15.0, 20.0)
    rates: tuple[float, ...] = (1e-5,)
    seeds: int = 5
    rules: dict[str, Any] = field(default_factory=dict)
    encoder: str = ""
    task: str = ""

    @classmethod
    def example(cls) -> Self:
        return cls(single={"narrow": "rows.jsonl"})

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {
            "procedure.epochs": [1, 2], "procedure.rates": [1e-3], "procedure.seeds": 1, "data.limit": 24, "train.max_steps": -1,
            "train.per_device_train_batch_size": 8,
        }  # fmt: skip

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Comparison`: compare.json and report.html in `folder`, a run folder for each arm and seed, the sweep beside them.

        Raises ConfigError where steps are counted and not epochs, or where no held-out rows or no task with rows could judge.
        """
        from luthier import report
        from luthier.verbs.compare import compare
        from luthier.verbs.run import prepare

        judged, arms = self.judged(recipe), self.arms(recipe)
        ready = prepare(config.recipe(recipe, {"procedure": None}))
        decoders = {
            name: config.build("decoding", one, "procedure.rules").for_tokenizer(ready.loaded.tokenizer)
            for name, one in self.rule_tables().items()
        }  # what the tokenizer does not know shows now
        how: dict[str, Any] = {
            "resume": bool(given.get("resume")), "quiet": given.get("quiet", False), "callbacks": given.get("callbacks") or (),
        }  # fmt: skip
        place = Path(folder) / "sweep"
        place.mkdir(parents=True, exist_ok=True)
        rows = place / "held-out.jsonl"
        runs.write_lines(rows, held_out_rows(recipe))
        settings = {
            named(arm, rate, epochs): at(changes, rate, epochs)
            for arm, changes in arms.items() for rate in self.rates for epochs in self.epochs
        }  # fmt: skip
        swept = compare(
            config.recipe(recipe, {
                "procedure": None, "output_dir": str(place), "compare.methods": settings, "compare.seeds": 1,
                "evaluate.tasks": [{**judged, "data": str(rows.resolve())}], "evaluate.drift": False, "evaluate.audit": None,
                "train.save_delta": False,
            }),
            **how,
        )  # fmt: skip
        table = [
            line for arm in arms for rate in self.rates for epochs in self.epochs
            if (line := self.line(swept, arm, rate, epochs)) is not None
        ]  # fmt: skip
        metric = swept.told["target"]["metric"]
        chosen = {arm: best([line for line in table if line["arm"] == arm], metric, up(swept)) for arm in arms}
        for arm, line in chosen.items():
            if line is None:
                raise LuthierError(f"{place}: every run of the arm '{arm}' failed: look at its compare.json")
            say(f"{arm}: {line['epochs']:g} epochs at {line['rate']:g}, held-out {metric} {line['values'][metric]:.3f}")
        final = {arm: at(arms[arm], line["rate"], line["epochs"]) for arm, line in chosen.items() if line is not None}
        done = compare(
            config.recipe(
                recipe, {"procedure": None, "output_dir": folder, "compare.seeds": self.seeds, "compare.methods": final}
            ),
            **how,
        )
        done.told["sweep"] = {
            "task": swept.told["target"]["title"], "metric": metric,
            "rows": [{**line, "chosen": line is chosen[line["arm"]]} for line in table],
        }  # fmt: skip
        done.told["untuned"] = self.untuned(ready, decoders, say)
        done.told["style"] = self.style(done, ready, str(judged.get("name")), arms) if self.encoder else {}
        runs.write_json(done.folder / "compare.json", done.told)
        report.write_compare_report(done.folder)
        return done

    # ------------------------------------------------------------------------------------------------------ arms

    def arms(self, recipe: RunRecipe) -> dict[str, Changes]:
        """What each tuned arm changes in the recipe; what the recipe says of it comes last."""
        elsewhere = {
            **dict.fromkeys(f"data.{key}" for key in ("columns", "template", "limit", "eval")),
            "data.val_size": 0,
        }
        out: dict[str, Changes] = {RESPONSE: {"data.responses_only": True}}
        for name, source in self.single.items():
            told = {"train": source} if isinstance(source, str) else source
            out[SINGLE + name] = {**elsewhere, **{f"data.{key}": value for key, value in told.items()}}
        out[INSTRUCTION] = {}
        return {arm: {**changes, **recipe.compare.methods.get(arm, {})} for arm, changes in out.items()}

    def rule_tables(self) -> dict[str, dict[str, Any]]:
        """Options of the decoder of every arm with rules."""
        return {name: {"name": "rules", **self.rules, **changes} for name, changes in WITHOUT.items()}

    def judged(self, recipe: RunRecipe) -> dict[str, Any]:
        """The task that judges the sweep, as the recipe writes it."""
        if recipe.data.train is None or (recipe.data.eval is None and not recipe.data.val_size):
            raise ConfigError(
                "recipe: implicit_instruction chooses epochs on held-out rows: set data.val_size or data.eval"
            )
        if recipe.train.max_steps > 0:
            raise ConfigError("recipe: procedure implicit_instruction counts epochs: remove train.max_steps")
        tasks = [t for t in recipe.evaluate.tasks if isinstance(t, Mapping) and t.get("data") is not None]
        found = next((dict(t) for t in tasks if self.task in ("", t.get("name"))), None)
        if found is None:
            raise ConfigError(
                f"recipe: evaluate.tasks has no task{f' {self.task!r}' if self.task else ''} with `data`, whose scorer could judge "
                "the sweep: add one, as in {name: following, scorer: stopping, data: ...}"
            )
        if recipe.data.eval is not None and recipe.data.eval == found["data"]:
            raise ConfigError(f"recipe: data.eval is what task '{found.get('name')}' measures: choose on other rows")
        return {**found, "group": "target"}

    # -------------------------------------------------------------------------------------------------- measuring

    def line(self, swept: Any, arm: str, rate: float, epochs: float) -> dict[str, Any] | None:
        """One setting of the sweep: its steps, and every metric of the judging task. None where the run failed."""
        cells = swept.cells(named(arm, rate, epochs))
        if not cells:
            return None
        results = cells[0]["results"]
        values = {metric: told["value"] for metric, told in results["tuned"][swept.told["target"]["task"]].items()}
        return {"arm": arm, "rate": rate, "epochs": epochs, "steps": results["cost"]["steps"], "values": values}

    def untuned(self, ready: Any, decoders: Mapping[str, Any], say: Callable[[str], None]) -> list[dict[str, Any]]:
        """The base as the recipe decodes it, and with rules: an arm each, with every metric of every task."""
        from luthier.evaluation import measure, pair

        asked = {"base": ready.recipe.method("decoding", "decoding"), **decoders}
        out: list[dict[str, Any]] = []
        before = None
        for name, decoder in asked.items():
            say(f"measuring {name}")
            found = measure(ready.loaded.subject(decoder, ready.recipe.seed), ready.tasks, base=before)
            before = before or found
            results = pair(before, found)
            out.append(
                {"arm": name, "tasks": results["tasks"], "measured": results["tuned"], "paired": results["paired"]}
            )
        return out

    def style(self, done: Any, ready: Any, task: str, arms: Mapping[str, Changes]) -> dict[str, Any]:
        """What leaks of each narrow task's style: its own model and that of all instructions on the judging task's rows."""
        from luthier import data
        from luthier.evaluation._family import items_of
        from luthier.verbs.load import load

        encoder = load(self.encoder, "embedding").subject(seed=ready.recipe.seed)
        judged = next(t for t in ready.tasks if t.name == task)
        items, decoder, said = judged.items(), ready.recipe.method("decoding", "decoding"), {}
        for arm in (INSTRUCTION, *(SINGLE + name for name in self.single)):
            for cell in done.cells(arm)[:1]:
                subject = load(str(done.folder / cell["run"])).subject(decoder, ready.recipe.seed)
                said[arm] = subject.generate([i.prompt for i in items], getattr(judged.scorer, "max_new_tokens", 64))
        out = {}
        for name in self.single:
            own = arms[SINGLE + name]
            rows = data.read(own["data.train"], columns=own["data.columns"], template=own["data.template"]).rows
            compared = {arm: said[arm] for arm in (SINGLE + name, INSTRUCTION) if arm in said}
            out[name] = told_style(encoder, items_of(rows), items, compared)
        return out


def named(arm: str, rate: float, epochs: float) -> str:
    return f"{arm}-{rate:g}-{epochs:g}ep"


def at(changes: Changes, rate: float, epochs: float) -> Changes:
    return {**changes, "train.learning_rate": rate, "train.num_train_epochs": epochs}


def up(swept: Any) -> bool:
    return bool(swept.told["target"]["higher_is_better"])


def best(lines: Sequence[dict[str, Any]], metric: str, higher: bool = True) -> dict[str, Any] | None:
    """The line of a sweep with the best value of the metric; among equals the one with the fewest steps, then the smallest rate."""
    sign = 1 if higher else -1
    return max(lines, key=lambda line: (sign * line["values"][metric], -line["steps"], -line["rate"]), default=None)
