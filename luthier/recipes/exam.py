"""Exam: which answers to learn from (codes, solutions, topic and solutions), and what shipping the adapter does to its points.

    split     by whole exams: `test` is asked about, data.eval or data.val_size (a share of the exams) chooses the checkpoint
    base      Q(W): a copy of the model whose matrices are rounded; full: W as it is
    tune      the recipe's tuner on each of `formats`, from the same rows for the same steps             RUN/<format>-seed<n>
    grade     points an exam, single, matching and all, with options in other orders beside               compare.json
    ship      five builds of each adapter (verbs/builds): points, KL to what training saw, size, |D| / |W - Q(W)|   exam.json

    formats   targets of data/exam;  permutations, max_new_tokens  as in evaluation/exam_points
    builds    false: no builds
    Options of the rows (wording, prompt_loss, max_length, ...) stand under `data`. Where the recipe says nothing, tuner and
    training are the paper's.
Start:      `procedure: exam`. Rows are read in all formats before anything is trained: begin token, longest row, duplicates over
            parts. An exam in two parts stops; equal solutions or sets of options are told.
Cost:       formats * seeds runs, and five times asking the test exams for each adapter.
Paper:      Syromiatnikov et al., 2025, "Empowering Smaller Models: Tuning LLaMA and Gemma with Chain-of-Thought for Ukrainian
            Exam Tasks", arXiv:2503.13988; steps of the public code.
Departures: AdamW in full precision for 8 bits; scales of the rounded base are not rounded again; builds beyond the two of the
            public code, duplicates by exact text and the permutations are additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from luthier.core import config, exam, runs
from luthier.core.config import ConfigError, ModelSettings
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import LuthierError, Recipe
from luthier.data._hygiene import begins, check_begin
from luthier.data._templates import ChatTemplate
from luthier.evaluation._compare import task
from luthier.recipes._stages import rounded_copy

TUNER = {"name": "lora", "r": 16, "alpha": 16.0, "dropout": 0.05, "targets": ["all"]}
TRAIN = {
    "learning_rate": 3e-4, "lr_scheduler_type": "linear", "warmup_steps": 20, "num_train_epochs": 4.0, "weight_decay": 0.01,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "eval_strategy": "epoch", "save_strategy": "epoch",
    "load_best_model_at_end": True,
}  # fmt: skip
"""The paper's settings, where the recipe names none."""
NAME = "exam"
"""The row type, and the task that is asked about the test exams."""
PROBES = 16
"""Prompts of the test exams on which builds are compared."""


@dataclass(frozen=True)
class Exam(Recipe):
    paper: ClassVar[str] = "arXiv:2503.13988"
    cards: ClassVar[tuple[int, ...]] = (34,)
    compares: ClassVar[bool] = True

    formats: tuple[exam.Form, ...] = exam.FORMATS
    test: Any = None
    base: Literal["nf4", "int8", "full"] = "nf4"
    builds: bool = True
    permutations: int = 2
    max_new_tokens: int = 2048
    seeds: int = 1

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {
            "procedure.formats": ["letters", "cot"], "procedure.base": "full", "procedure.permutations": 0,
            "procedure.test": "sandbox:exam?task=mixed&split=test&n=8", "data.val_size": 0.25, "train.max_steps": 3,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Comparison` of the formats; exam.json beside it. Raises LuthierError for exams, rows or a template that do not fit."""
        from luthier import report
        from luthier.verbs.compare import compare, must_be_new

        place = Path(folder)
        must_be_new(place, bool(given.get("resume")))
        told = self._told(recipe)
        found: dict[str, Any] = {"rows": self._rows(told, say), "duplicates": self._parts(told, say)}
        model = recipe.model.model_dump(exclude_unset=True)
        if self.base != "full":
            copy = rounded_copy(recipe.model, self.base, place / f"base-{self.base}")
            told = config.recipe(told, {"model.model_name_or_path": str(copy)})
        methods = {form: self._method(form, told) for form in self.formats}
        asked = config.recipe(
            told,
            {"procedure": None, "output_dir": folder, "compare.seeds": self.seeds, "compare.methods": methods},
        )
        done = compare(
            asked,
            resume=bool(given.get("resume")),
            quiet=given.get("quiet", False),
            callbacks=given.get("callbacks") or (),
        )
        found["steps"] = {
            form: done.cells(form)[0]["results"]["cost"]["steps"] for form in self.formats if done.cells(form)
        }
        if len(set(found["steps"].values())) > 1:
            say(f"exam: WARNING: other numbers of steps, as not all rows have all formats: {found['steps']}")
        if self.builds:
            found["builds"] = [b for cell in done.told["cells"] if (b := self._built(done, cell, told, model, say))]
        done.told["recipe"], done.told["exam"] = recipe.resolved(), found
        runs.write_json(place / "exam.json", found)
        runs.write_json(place / "compare.json", done.told)
        report.write_compare_report(place)
        return done

    def _told(self, recipe: RunRecipe) -> RunRecipe:
        """The recipe with what the paper says where it says nothing."""
        data = recipe.data
        if data.train is None or self.test is None:
            raise ConfigError(
                "recipe: data.train and procedure.test are rows of exams: name a file or sandbox:exam for each"
            )
        if data.type not in (None, NAME) or "target" in data.options:
            raise ConfigError(
                "recipe: procedure exam reads rows of type exam in all its formats: remove data.type and data.target"
            )
        objective = recipe.method("objectives", "objective")
        if NAME not in objective.rows:
            raise ConfigError(f"recipe: objective '{objective.name}' takes no rows of type exam: use sft")
        own: dict[str, Any] = {"data.type": NAME}
        if data.eval is None:
            own |= {"data.val_size": data.val_size or 13 / 45, "data.group": data.group or "test_id"}
        said = recipe.train.model_fields_set | (
            {"warmup_steps"} if "warmup_ratio" in recipe.train.model_fields_set else set()
        )
        own |= {f"train.{k}": v for k, v in TRAIN.items() if k not in said}
        if "tuner" not in recipe.model_fields_set:
            own["tuner"] = TUNER
        return config.recipe(recipe, own)

    def _method(self, form: str, told: RunRecipe) -> dict[str, Any]:
        """What a format changes: the rows' target, and how the test exams are asked."""
        asked = {
            "name": NAME, "scorer": "exam_points", "data": self.test, "target": form, "permutations": self.permutations,
            "wording": told.data.options.get("wording", "en"), "max_new_tokens": self.max_new_tokens,
        }  # fmt: skip
        return {"data.target": form, "evaluate.tasks": [asked, *told.evaluate.tasks]}

    # -------------------------------------------------------------------------------------- before training

    def _parts(self, told: RunRecipe, say: Callable[[str], None]) -> list[str]:
        """What parts have in common. Raises LuthierError for a whole exam."""
        from luthier import data

        given: dict[str, Any] = {"columns": told.data.columns, "template": told.data.template, "seed": told.seed}
        train = data.read(told.data.train, limit=told.data.limit, **given)  # type: ignore[arg-type]
        if told.data.eval is not None:
            held = data.read(told.data.eval, **given)
        else:
            train, held = data.split(train, told.data.val_size, seed=told.seed, group=told.data.group, check=False)
        parts = {"train": train.rows, "validation": held.rows, "test": data.read(self.test, seed=told.seed).rows}
        found = exam.duplicates(parts)
        for one in found:
            if one.kind == exam.WHOLE:
                raise LuthierError(f"exam: {one.text}: an exam must be in one part alone")
        say(f"exam: {', '.join(f'{len(rows)} {part} tasks' for part, rows in parts.items())}")
        for one in found[:5]:
            say(f"exam: WARNING: {one.text}")
        return [one.text for one in found]

    def _rows(self, told: RunRecipe, say: Callable[[str], None]) -> dict[str, Any]:
        """Rows, lengths and tokens a character of each format; begin token, end of a turn and padding of the template."""
        from luthier import data
        from luthier.verbs.load import load

        loaded = load(told.model, "causal_lm")
        out: dict[str, Any] = {}
        subject, tokenizer = loaded.subject(), loaded.tokenizer
        given: dict[str, Any] = {"columns": told.data.columns, "template": told.data.template, "limit": told.data.limit}
        for form in self.formats:
            options = {
                **({"max_length": subject.window} if subject.window else {}),
                **told.data.options,
                "target": form,
            }
            made = data.prepare(
                told.data.train, tokenizer=tokenizer, type=NAME, options=options, seed=told.seed, **given
            )
            rows: Any = made.examples
            tokenizer.chat_template, report = made.chat_template, made.report
            wanted = begins(tokenizer, made.chat_template)
            check_begin(
                subject.encode([{"role": "user", "content": "a"}]), tokenizer, wanted, "a prompt of the test exams"
            )
            text = sum(len(tokenizer.decode(e.ids, skip_special_tokens=True)) for e in rows)
            out[form] = {
                "rows": report.examples, "rejected": len(report.rejected), "cut": report.truncated,
                "longest": report.lengths["max"], "tokens_per_character": sum(made.lengths) / max(1, text),
                "begin_tokens": wanted,
            }  # fmt: skip
            say(f"exam: {form}: {report.examples} rows, longest {report.lengths['max']} tokens, {report.truncated} cut")
        closing = ChatTemplate(tokenizer.chat_template, tokenizer).closing.strip()
        if closing and tokenizer.convert_tokens_to_ids(closing) not in subject.stop_ids:
            say(f"exam: WARNING: nothing stops an answer at '{closing}': add its id to generation_config.eos_token_id")
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            say("exam: padding is the end token; it is masked by length here, other tools may mask the end too")
        return out

    # ------------------------------------------------------------------------------------------------ builds

    def _built(
        self, done: Any, cell: Mapping[str, Any], told: RunRecipe, model: Mapping[str, Any], say: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """The five builds of a cell's adapter on the model as it was."""
        from luthier.verbs.builds import builds

        adapter = done.folder / cell["run"] / "adapter"
        if cell["status"] != "done" or not adapter.is_dir():
            return None
        form, kind = cell["method"], "nf4" if self.base == "full" else self.base
        asked = {**self._method(form, told)["evaluate.tasks"][0], "permutations": 0}
        one, decoder = task({**asked, "limit": told.evaluate.limit}), told.method("decoding", "decoding")
        items = one.items()

        def measure(made: Any) -> dict[str, float]:
            answers = one.scorer.ask(made.subject(decoder, told.seed), items)
            every = np.ones((1, len(items)))
            return {m: float(one.scorer.aggregate(m, answers)(answers.stats, every)[0]) for m in ("points", "matching")}

        words = exam.wording(asked["wording"])
        tasks = [exam.task_of(i.row, words) for i in items[:PROBES]]
        prompts = [[{"role": "user", "content": exam.prompt(t, words, form)}] for t in tasks]
        source = ModelSettings.model_validate({**model, "adapter": str(adapter), "tokenizer": str(adapter)})
        found = builds(source, kind, prompts, measure)
        say(f"{cell['run']}\n{found.text()}")
        return {"run": cell["run"], "kind": kind, "rows": [vars(r) for r in found.rows], "ratio": found.ratio}
