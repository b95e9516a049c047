"""`luthier run`: tune, measure before and after, write a run folder with its report."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

import luthier
from luthier.core import config, runs
from luthier.core.config import Recipe
from luthier.core.delta import save_delta
from luthier.core.loop import Diverged, Fitted, Interrupted, Loop, LoopCallback, make_accelerator, seed_everything
from luthier.core.method import HEADED, LuthierError, Objective, OnlineObjective, Refusal, Tuner
from luthier.core.references import References, references, with_untuned
from luthier.core.rollouts import Rollouts
from luthier.core.runs import RunFolder
from luthier.core.teacher import SUFFIX, TeacherStore, asked, tokens_in_common, vocabulary_hash
from luthier.report.words import first_up
from luthier.verbs._audit import Watch
from luthier.verbs._display import Display, FromTransformers, Trackers
from luthier.verbs.load import Loaded, calm, load
from luthier.verbs.rewards import reward_of


@dataclass
class RunResult:
    """A finished run.

    folder   where it is;  results  what results.json holds;  fitted  what the loop told
    loaded   the tuned model, ready to ask
    """

    folder: Path
    results: dict[str, Any]
    fitted: Fitted
    loaded: Loaded

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


@dataclass
class Prepared:
    """Everything that a run needs before its first step. A procedure may change it, and how it is measured and saved.

    told  the recipe that the manifest tells and that makes the run again: the whole procedure's, in its last stage
    """

    recipe: Recipe
    loaded: Loaded
    tuner: Tuner
    objective: Objective
    train: Any
    held_out: Any
    tasks: list[Any] = field(default_factory=list)
    told: Recipe | None = None

    def measure(self, tuned: Loaded, before: Any) -> Any:
        """The tuned model on the tasks; `before` are the answers of the untuned one."""
        from luthier.evaluation import measure

        decoder = self.recipe.method("decoding", "decoding")
        return measure(tuned.subject(decoder, self.recipe.seed), self.tasks, base=before)

    def save(self, folder: Path, tuned: Loaded) -> dict[str, Any]:
        """Write the tuned model; what it weighs, for the manifest."""
        return save_model(folder, tuned, self)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool | str | None = None,
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
    bases: dict[str, Any] | None = None,
    change: Callable[[Prepared], Prepared] | None = None,
    also: Sequence[str] = (),
) -> RunResult:
    """Run a recipe to the end.

    overrides  dotted or flat keys that beat the recipe
    resume     True: the last checkpoint of output_dir; a path: that checkpoint
    callbacks  LoopCallback objects or transformers.TrainerCallback objects
    bases      what untuned models answered, by their hash and that of the tasks: looked up and filled, so that runs share it
    change     what a procedure makes of what was prepared, before anything is written or trained
    also       row types, beside the objective's own, that `change` makes fit for it

    Raises ConfigError for a recipe that cannot be used and LuthierError for everything else that a user can mend.
    """
    told = config.recipe(recipe, overrides)
    resume = resume if resume is not None else told.train.resume_from_checkpoint
    if told.train.torch_threads:
        torch.set_num_threads(told.train.torch_threads)
    folder = RunFolder(told.output_dir or _default_folder(told))
    if (procedure := _procedure(told)) is not None:
        if (folder.path / "run.json").exists() and not resume and not _unfinished(folder):
            folder.must_be_free()  # told before the first stage, which may take hours
        given = {"resume": resume, "callbacks": callbacks, "quiet": quiet, "bases": bases}
        return procedure.run(str(folder.path), recipe=told, say=_speaker(quiet), **given)
    seed_everything(told.seed)  # a new task head is part of what the seed decides
    accelerator = make_accelerator(told.train, folder.path)
    main = accelerator.is_main_process
    say = _speaker(quiet or not main)
    checkpoint = _checkpoint(folder, resume)
    ready = prepare(told, say, also)
    if change is not None:
        ready = change(ready)
    if main:
        _open(folder, ready, resumed=checkpoint is not None)
    accelerator.wait_for_everyone()
    with calm(), _status(folder, main):
        before = _before(folder, ready, bases, say) if main else None
        untuned = _references(ready, say)
        name = ready.loaded.name
        model = ready.tuner.wrap(ready.loaded.model, ready.loaded.task, told.seed)
        heard = _callbacks(told, callbacks, quiet, ready.loaded.tokenizer)
        if (audited := told.evaluate.audit) is not None and audited.every is not None:
            heard.append(Watch(ready, before, audited.every))
        loop = Loop(
            model, ready.tuner, ready.objective, ready.train.examples, told.train, ready.loaded.tokenizer.pad_token_id,
            told.seed, folder, ready.held_out.examples if ready.held_out else None, untuned,
            heard, accelerator,
            fresh=lambda: ready.tuner.wrap(load(told.model, ready.loaded.task).model, ready.loaded.task, told.seed),
            rollouts=_rollouts(ready),
        )  # fmt: skip
        fitted = loop.fit(checkpoint)
        tuned = Loaded(loop.whole_model(), ready.loaded.tokenizer, ready.loaded.task, name, str(folder.path))
        results: dict[str, Any] = {}
        if main:
            artefact = ready.save(folder.path, tuned)
            results = _after(folder, ready, tuned, before, fitted, artefact, say)
        accelerator.wait_for_everyone()
    if main:
        _reports(folder, say)
    return RunResult(folder.path, results, fitted, tuned)


def _procedure(told: Recipe) -> Any:
    """The procedure of several stages that a recipe asks for, or None."""
    if told.stability.mode == "auto":
        from luthier.recipes.stability_kit import StabilityKit

        if told.procedure is not None:
            raise config.ConfigError("recipe: stability: auto and procedure each name a procedure: keep one of them")
        return StabilityKit(seeds=told.stability.seeds)
    return None if told.procedure is None else told.method("recipes", "procedure")


# ------------------------------------------------------------------------------------------------- before


def prepare(recipe: Recipe, say: Callable[[str], None] = lambda text: None, also: Sequence[str] = ()) -> Prepared:
    """Model, data, methods and tasks of a recipe; every mistake in it shows here, before anything is trained."""
    tuner, objective = recipe.method("tuners", "tuner"), recipe.method("objectives", "objective")
    recipe.method("decoding", "decoding")
    if recipe.train.save_delta and tuner.artefact != "model":
        raise config.ConfigError(
            f"recipe: train.save_delta is for tuners of the model's own tensors; what '{tuner.name}' saves is small already: "
            "remove the key"
        )
    if recipe.model.quantised and tuner.artefact == "model":
        raise Refusal(
            f"{tuner.name} moves the model's own matrices, which model.load_in_4bit or load_in_8bit keep as levels that "
            "cannot move: take an adapter such as lora, or remove the key"
        )
    if recipe.data.train is None:
        raise config.ConfigError("recipe: data.train is missing: name a file, a folder, a hub id or sandbox:WORLD")
    if isinstance(objective, OnlineObjective) != (recipe.rollouts is not None):
        raise config.ConfigError(
            f"recipe: objective '{objective.name}' learns from given answers: remove rollouts"
            if recipe.rollouts
            else f"recipe: objective '{objective.name}' learns from answers that the model writes: add a section rollouts, with "
            "what judges them, as in rollouts: {reward: {scorer: answer}}"
        )
    if recipe.rollouts is not None:
        reward_of(recipe.rollouts.reward)
    task = objective.task if recipe.model.task == "auto" else recipe.model.task
    rows = None
    if task in HEADED:  # the head's size comes from the labels
        rows = _rows(recipe, _tokenizer(recipe), None)
        _check_rows(rows, objective)
        names = rows.report.label_names
        loaded = load(recipe.model, task, _labels(rows), names, getattr(rows.source, "problem_type", None))
    else:
        loaded = load(recipe.model, task)
        if loaded.task not in (task, "seq2seq_lm"):
            raise LuthierError(f"objective '{objective.name}' needs a {task} model; '{loaded.name}' is {loaded.task}")
    if rows is None:
        rows = _rows(recipe, loaded.tokenizer, loaded)
    _check_rows(rows, objective, also)
    if rows.chat_template is not None:  # evaluation, serving and the saved model use the template of training
        loaded.tokenizer.chat_template = rows.chat_template
    report = rows.report
    objective = objective.for_tokenizer(loaded.tokenizer)
    tuner = tuner.for_data(loaded.tokenizer, report.label_names)
    trained = f"{report.trained_tokens:,} of {report.tokens:,} tokens trained"
    say(f"{report.examples:,} {report.type} rows, {trained if report.trained_tokens else f'{report.tokens:,} tokens'}")
    if report.rejected:
        first = report.rejected[0]
        say(f"{len(report.rejected)} rows rejected; the first: {first.origin}: {first.reason}")
    if report.truncated:
        say(f"{report.truncated} rows cut to max_length, {report.answers_cut} of them lost trained tokens")
    return Prepared(recipe, loaded, tuner, objective, *_held_out(recipe, rows, loaded), measured_tasks(recipe))


def _check_rows(rows: Any, objective: Objective, also: Sequence[str] = ()) -> None:
    if rows.source.name not in (*objective.rows, *also):
        raise LuthierError(
            f"objective '{objective.name}' takes rows of type {', '.join(objective.rows)}; these are "
            f"'{rows.source.name}' ({rows.report.why}): change objective, or map the columns with data.columns"
        )


def _tokenizer(recipe: Recipe) -> Any:
    from transformers import AutoTokenizer

    from luthier.verbs.load import _run_output, _where

    name = recipe.model.tokenizer or recipe.model.model_name_or_path
    where = _where(name, _run_output(Path(name).expanduser()))
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise LuthierError(f"model '{name}' cannot be loaded: {str(error).splitlines()[0]}") from error


def _rows(recipe: Recipe, tokenizer: Any, loaded: Loaded | None, source: Any = None, like: Any = None) -> Any:
    from luthier import data

    told = recipe.data
    options = _row_options(recipe, dict(told.options))
    if "max_length" not in options and like is None:
        window = loaded.subject().window if loaded else getattr(tokenizer, "model_max_length", None)
        if window and window < 10**9:
            options["max_length"] = window - (recipe.rollouts.max_new_tokens if recipe.rollouts else 0)
    return data.prepare(
        source if source is not None else told.train,
        tokenizer=tokenizer,
        type=like if like is not None else told.type or _only_type(recipe),
        columns=told.columns,
        template=told.template,
        options={} if like is not None else options,
        limit=told.limit if like is None else None,
        shuffle=told.shuffle if like is None else None,
        keep=told.keep,
        seed=recipe.seed,
        cache_dir=told.cache_dir,
    )


def _only_type(recipe: Recipe) -> str | None:
    """The row type that needs no detection: prompts, which rows with answers are as well."""
    objective = recipe.method("objectives", "objective")
    return objective.rows[0] if isinstance(objective, OnlineObjective) else None


def _row_options(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the data type with those that the objective cannot do without."""
    objective = recipe.method("objectives", "objective")
    for key, value in objective.row_options.items():
        if options.setdefault(key, value) != value:
            raise config.ConfigError(f"recipe: objective '{objective.name}' needs data.{key}: {value}: remove the key")
    return options


def _labels(rows: Any) -> int:
    first = getattr(rows.examples[0], "label", None)  # rows without a label need one score each
    if isinstance(first, list):
        return len(first)
    return len(rows.report.label_names) if rows.report.label_names else 1


def _held_out(recipe: Recipe, rows: Any, loaded: Loaded) -> tuple[Any, Any]:
    """(training rows, held-out rows or None)."""
    from luthier import data

    told = recipe.data
    if told.eval is not None:
        return rows, _rows(recipe, loaded.tokenizer, loaded, told.eval, like=rows.source)
    if not told.val_size:
        return rows, None
    assert told.train is not None  # `rows` came from it
    table = data.read(
        told.train,
        columns=told.columns,
        template=told.template,
        limit=told.limit,
        seed=recipe.seed,
        shuffle=told.shuffle,
    )
    kept, held = data.split(table, told.val_size, seed=recipe.seed, stratify=told.stratify, group=told.group)
    given: dict[str, Any] = {
        "tokenizer": loaded.tokenizer, "type": rows.source, "keep": told.keep, "seed": recipe.seed,
    }  # fmt: skip
    return data.prepare(kept, **given), data.prepare(held, **given)


def measured_tasks(recipe: Recipe) -> list[Any]:
    """The recipe's tasks and, unless switched off, how far the model moved on text that nobody tuned it on."""
    from dataclasses import replace

    from luthier import sandbox
    from luthier.evaluation._compare import task

    told = recipe.evaluate
    found = [task(t) for t in told.tasks]
    if told.audit is not None:
        from luthier.evaluation._audit import tasks

        found += tasks(told.audit)
    if told.limit is not None:
        found = [replace(t, limit=min(told.limit, t.limit or told.limit)) for t in found]
    causal = recipe.method("objectives", "objective").task == "causal_lm"
    if told.drift and causal:
        own = recipe.model.model_name_or_path in sandbox.model_names()
        names = ("held_out_text", "neutral") if own else ("held_out_english", "neutral_english")
        found += [t for t in map(task, names) if t.name not in {f.name for f in found}]
    return found


def _references(ready: Prepared, say: Callable[[str], None]) -> References | None:
    held_out = ready.held_out.examples if ready.held_out else None
    found = references(
        ready.loaded.model, ready.tuner, ready.objective, ready.train.examples, ready.loaded.tokenizer.pad_token_id,
        ready.recipe.train, held_out, teacher_of(ready, say),
    )  # fmt: skip
    if found is not None and found.answers is not None:
        say("reference log-probabilities " + ("read from the store" if found.reused else "computed once and stored"))
    if ready.recipe.analysis is not None and ready.recipe.method("analysis", "analysis").untuned:
        found = with_untuned(found, ready.loaded.model, ready.tuner, ready.objective)
    return found


def teacher_of(ready: Prepared, say: Callable[[str], None] = lambda text: None) -> Any:
    """What the objective learns from, where it names a teacher: that model, or a store of what it said of all rows."""
    told, ours = ready.objective.teacher, (ready.loaded.name, ready.loaded.tokenizer)
    if told is None:
        return None
    stored = ready.objective.reference == "top"
    if stored and isinstance(told, str) and told.endswith(SUFFIX):
        store = TeacherStore.load(told)
        if store.about.get("vocabulary") != vocabulary_hash(ours[1]):
            raise LuthierError(
                f"{told}: its teacher has another tokenizer than '{ours[0]}': ids would mean other tokens"
            )
        return store.cut(ready.objective.k)
    other = ready.loaded.beside(told)
    tokens = tokens_in_common(ours, (other.name, other.tokenizer))
    if not stored:
        return other.model.requires_grad_(False)
    examples = [*ready.train.examples, *(ready.held_out.examples if ready.held_out else [])]
    store, reused = asked(
        other.model, examples, ready.objective.k, ours[1].pad_token_id, vocabulary_hash(ours[1]), tokens,
        ready.recipe.train.per_device_eval_batch_size,
    )  # fmt: skip
    mass = store.captured()
    say(
        f"teacher: its {ready.objective.k} likeliest tokens {'read from the store' if reused else 'stored'}; they hold "
        f"{mass['mean']:.3f} of its probability, {mass['fifth_percentile']:.3f} at the 5th percentile; "
        f"{mass['share_below_0.9']:.1%} of positions below 0.9"
    )
    return store


def _rollouts(ready: Prepared) -> Rollouts | None:
    told = ready.recipe.rollouts
    if told is None:
        return None
    own = config.build("decoding", {"name": "nucleus", "temperature": 1.0, "top_p": 1.0}, "rollouts")
    return Rollouts(told, own, ready.loaded.tokenizer, reward_of(told.reward))


def _callbacks(recipe: Recipe, given: Sequence[Any], quiet: bool, tokenizer: Any) -> list[LoopCallback]:
    out: list[LoopCallback] = [] if quiet else [Display(recipe.name or recipe.tuner["name"])]
    own = [c for c in given if isinstance(c, LoopCallback)]
    foreign = [c for c in given if not isinstance(c, LoopCallback)]
    if recipe.analysis is not None:
        from luthier import data

        looks = recipe.method("analysis", "analysis")
        own.append(_Look(looks.for_data(tokenizer, lambda source: list(data.read(source).rows))))
    if foreign:
        own.append(FromTransformers(foreign, recipe.train))
    if recipe.train.report_to not in ("none", [], None):
        own.append(Trackers(recipe.name or "luthier", recipe.resolved()["train"]))
    return out + own


class _Look(LoopCallback):
    """The recipe's analysis, before the first step, at every `every` steps of its own, and after the last."""

    def __init__(self, analysis: Any):
        self.analysis = analysis

    def start(self, loop: Loop) -> None:
        if loop.step_index == 0:
            self._look(loop)

    def step(self, loop: Loop) -> None:
        every = self.analysis.every
        if (every and loop.step_index % every == 0) or loop.step_index == loop.total:
            self._look(loop)

    def _look(self, loop: Loop) -> None:
        found = {self.analysis.name: self.analysis.look(loop)}
        loop.record({"step": loop.step_index, "epoch": loop.step_index / loop.plan.steps_per_epoch, "analysis": found})


def _default_folder(recipe: Recipe) -> str:
    model = Path(recipe.model.model_name_or_path).name
    return f"runs/{recipe.name or '-'.join([model, recipe.tuner['name'], recipe.objective['name']])}"


def _checkpoint(folder: RunFolder, resume: bool | str | None) -> Path | None:
    if not resume:
        return None
    folder.sweep()
    if isinstance(resume, str):
        path = Path(resume)
        if not (path / "trainer_state.json").exists():
            raise LuthierError(f"{path}: no trainer_state.json: this is not a checkpoint")
        return path
    if not (folder.path / "run.json").exists():
        raise LuthierError(f"{folder.path}: nothing to resume: no run.json there")
    return folder.last_checkpoint()


# ------------------------------------------------------------------------------------------------ manifest


def _open(folder: RunFolder, ready: Prepared, resumed: bool) -> None:
    recipe = ready.told or ready.recipe
    if (folder.path / "run.json").exists() and (resumed or recipe.train.resume_from_checkpoint or _unfinished(folder)):
        same_recipe(folder, recipe)
        folder.update(status="running", resumed=runs.now())
        if not resumed:
            folder.rewind(-1)
        return
    whole = recipe.procedure
    entry = luthier.core.catalog.entry(*(("recipes", whole["name"]) if whole else ("tuners", recipe.tuner["name"])))
    folder.create(
        {
            **runs.provenance(),
            "kind": "run",
            "name": recipe.name or folder.path.name,
            "status": "running",
            "recipe": recipe.resolved(),
            "seeds": {"seed": recipe.seed, "data_seed": recipe.train.data_seed},
            "data": [_data_row("train", ready.train)] + ([_data_row("eval", ready.held_out)] if ready.held_out else []),
            "base": ready.loaded.manifest(),
            "method": {
                "tuner": recipe.tuner["name"],
                "objective": recipe.objective["name"],
                "procedure": whole["name"] if whole else None,
                "title": entry.title.partition(": ")[0],
                "paper": entry.paper,
                "summary": first_up(entry.title.partition(": ")[2]),
            },
        }
    )
    runs.write_text(folder.path / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))


def _unfinished(folder: RunFolder) -> bool:
    """A run that never came to its first checkpoint may be started over in place."""
    return folder.manifest["status"] in ("running", "failed", "interrupted") and not folder.checkpoints()


def same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    before, now = folder.manifest["recipe"], recipe.resolved()
    free = ("output_dir", "evaluate", "name", "compare")
    for section, value in now.items():
        old = before.get(section)
        if isinstance(value, dict) and isinstance(old, dict):
            value = {
                k: v for k, v in value.items() if k not in ("resume_from_checkpoint", "torch_threads", "report_to")
            }
            old = {k: v for k, v in old.items() if k not in ("resume_from_checkpoint", "torch_threads", "report_to")}
        if section not in free and old != value:
            raise LuthierError(
                f"{folder.path}: the recipe's '{section}' is not that of the run to resume: {old} is now {value}. Put it back, or "
                "choose another output_dir"
            )


def _data_row(name: str, rows: Any) -> dict[str, Any]:
    report = rows.report
    return {
        "name": name,
        "source": ", ".join(report.sources),
        "type": report.type,
        "rows": report.examples,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "sha256": report.sha256,
        "rejected": len(report.rejected),
        "truncated": report.truncated,
        "answers_cut": report.answers_cut,
        "template": report.template,
    }


@contextmanager
def _status(folder: RunFolder, main: bool) -> Any:
    """The manifest tells how the run ended, whatever happens."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        if main:
            folder.update(status="interrupted", finished=runs.now())
        raise
    except Exception as error:
        if main:
            _try_update(folder, status="failed", finished=runs.now(), error=str(error))
        raise
    if main:
        folder.update(status="done", finished=runs.now())


def _try_update(folder: RunFolder, **changes: Any) -> None:
    """Say how it ended if the disk still takes it; the error that ended the run matters more."""
    try:
        folder.update(**changes)
    except LuthierError as error:
        warnings.warn(str(error), stacklevel=2)


# ------------------------------------------------------------------------------------------------- measure


def _before(folder: RunFolder, ready: Prepared, bases: dict[str, Any] | None, say: Callable[[str], None]) -> Any:
    """Answers of the untuned model: from this run's folder, from a run beside it, or asked now."""
    from luthier.evaluation import Measured, measure

    if not ready.tasks:
        return None
    asked = hashlib.sha256(repr(ready.tasks).encode()).hexdigest()[:16]  # runs that share `bases` may ask other things
    kept, key = folder.path / "base.json", f"{folder.manifest['base']['sha256']}-{asked}"
    if bases is not None and key in bases:
        return bases[key]
    if kept.exists():
        return Measured.load(kept, ready.tasks)
    say(f"measuring the base model on {len(ready.tasks)} tasks")
    decoder = ready.recipe.method("decoding", "decoding")
    found = measure(ready.loaded.subject(decoder, ready.recipe.seed), ready.tasks)
    found.save(kept)
    if bases is not None:
        bases[key] = found
    return found


def _after(
    folder: RunFolder,
    ready: Prepared,
    tuned: Loaded,
    before: Any,
    fitted: Fitted,
    artefact: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    from luthier.evaluation import pair
    from luthier.evaluation._compare import samples

    cost = {**fitted.cost, "stored_bytes": artefact["bytes"], "stored_parameters": artefact.pop("parameters")}
    results: dict[str, Any] = {"tasks": {}, "base": {}, "tuned": {}, "paired": {}}
    if before is not None:
        say("measuring the tuned model")
        after = ready.measure(tuned, before)
        results = pair(before, after)
        after.save(folder.path / "tuned.json", memory=False)
        if (asked := ready.recipe.evaluate.audit) is not None:
            from luthier.evaluation._audit import summary

            results["audit"] = summary(before, after, results, asked, fitted.log)
        runs.write_lines(folder.path / "samples.jsonl", samples(before, after, ready.recipe.evaluate.samples))
        runs.write_lines(folder.path / "generated_predictions.jsonl", after.predictions())
    results["cost"] = cost
    if looked := [{"step": r["step"], **r["analysis"]} for r in fitted.log if "analysis" in r]:
        results["analysis"] = looked
    folder.update(artefact=artefact)
    runs.write_json(folder.path / "results.json", results)
    _transformers_files(folder, fitted, results)
    return results


def _transformers_files(folder: RunFolder, fitted: Fitted, results: dict[str, Any]) -> None:
    """The files that users of transformers' Trainer look for."""
    train = {
        "train_loss": fitted.loss,
        "train_runtime": fitted.seconds,
        "train_steps_per_second": fitted.steps / max(fitted.seconds, 1e-9),
        "total_flos": fitted.cost["train_flops"],
    }
    measured = {f"eval_{t}_{m}": v["value"] for t, ms in results["tuned"].items() for m, v in ms.items()}
    evaluations = [r for r in fitted.log if "eval_loss" in r]
    if evaluations:
        measured |= {k: v for k, v in evaluations[-1].items() if k.startswith("eval_")}
    runs.write_json(folder.path / "train_results.json", train)
    runs.write_json(folder.path / "eval_results.json", measured)
    runs.write_json(folder.path / "all_results.json", {**train, **measured})
    state = {"global_step": fitted.steps, "log_history": fitted.log, "best_model_checkpoint": fitted.best}
    runs.write_json(folder.path / "trainer_state.json", state)


def save_model(folder: Path, tuned: Loaded, ready: Prepared) -> dict[str, Any]:
    """Write `model/`, `adapter/` or `delta/` with tokenizer, template and model card; what it weighs, for the manifest."""
    kind = "delta" if ready.recipe.train.save_delta else ready.tuner.artefact
    target = folder / kind
    names = ready.train.report.label_names

    def write(part: Path) -> None:
        with calm():
            if kind == "delta":
                _write_delta(part, tuned, ready)
            else:
                tuned.model.save_pretrained(part)
        tuned.tokenizer.save_pretrained(part)
        if tuned.task in HEADED:
            problem, outputs = getattr(ready.train.source, "problem_type", None), tuned.model.config.num_labels
            told = {"names": names, "problem_type": problem, "outputs": outputs}
            (part / "labels.json").write_text(json.dumps(told))
        if kind == "adapter":
            _name_base(part / "adapter_config.json", ready)
        (part / "README.md").write_text(_card(ready), encoding="utf-8")

    runs.write_folder(target, write)
    weights = list(target.glob("*.safetensors"))
    from safetensors import safe_open

    scalars = 0
    for file in weights:
        with safe_open(file, "pt") as held:
            names_held = [k for k in held.keys() if not k.endswith("#at")]  # noqa: SIM118  values, not their places
            scalars += sum(_numel(held.get_slice(k).get_shape()) for k in names_held)
    return {
        "kind": kind,
        "path": kind,
        "bytes": sum(f.stat().st_size for f in weights),
        "sha256": runs.hash_files(target),
        "parameters": scalars,
    }


def _write_delta(part: Path, tuned: Loaded, ready: Prepared) -> None:
    """What moved against the base, which is read again: the model that was tuned is no longer it."""
    told, names = ready.recipe.model, ready.train.report.label_names
    classes = tuned.model.config.num_labels if tuned.task in HEADED else None
    base = load(told, tuned.task, classes, names)
    name = str(Path(base.name).resolve()) if Path(base.name).exists() else base.name
    about = {"dtype": told.dtype, "tuner": ready.recipe.tuner["name"], "luthier": luthier.__version__}
    save_delta(part, base.model, tuned.model, name=name, task=tuned.task, new=base.new, **about)


def _numel(shape: Sequence[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def _name_base(file: Path, ready: Prepared) -> None:
    """The base by the name or absolute path that finds it again, whatever the working directory."""
    told = json.loads(file.read_text())
    told["base_model_name_or_path"] = ready.loaded.path if Path(ready.loaded.path).exists() else ready.loaded.name
    file.write_text(json.dumps(told, indent=2))


def _card(ready: Prepared) -> str:
    recipe = ready.told or ready.recipe
    name, tuner, objective = ready.loaded.name, recipe.tuner["name"], recipe.objective["name"]
    kind = "peft" if ready.tuner.artefact == "adapter" else "transformers"
    dump = yaml.safe_dump(recipe.resolved(), sort_keys=False)
    return (
        f"---\nbase_model: {name}\nlibrary_name: {kind}\ntags:\n- luthier\n- {tuner}\n- {objective}\n---\n\n"
        f"# {recipe.name or tuner}\n\n{name} tuned by `{tuner}` under `{objective}` with luthier {luthier.__version__}.\n\n"
        f"Trained on {ready.train.report.examples:,} {ready.train.report.type} rows "
        f"(sha256 {ready.train.report.sha256[:12]}).\n\n```yaml\n{dump}```\n"
    )


def _reports(folder: RunFolder, say: Callable[[str], None]) -> None:
    from luthier import report

    path = report.write_run_report(folder.path)
    report.save_png(folder.path)
    say(f"report: {path}")


def _speaker(quiet: bool) -> Callable[[str], None]:
    if quiet:
        return lambda text: None
    import sys

    return lambda text: print(text, file=sys.stderr, flush=True)


__all__ = ["Diverged", "Interrupted", "Prepared", "RunResult", "prepare", "run"]
