"""Before and after: tasks from dicts or files, a subject measured on them, two measurements paired on the same items.

    task file or dict  ->  Task  ->  measure(subject, tasks)  ->  Measured  ->  pair(base, tuned)  ->  results

A value has a 95% interval over its items: Wilson for proportions, BCa bootstrap for the rest. A difference is tested
on the same items: McNemar (exact) for 0/1, sign flips for means, swaps of base and tuned for metrics that are not
means. The main metrics of a group (target, safety, retention, drift) are corrected together (Holm); `p` is then the corrected
one and `test` says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.config import build, read_yaml
from luthier.core.layout import Layout
from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._family import Answers, Item, Scorer, TextScorer, items_of

TASKS = Path(__file__).parent / "tasks"
GROUPS = ("target", "safety", "retention", "drift")
_OWN = ("name", "version", "title", "scorer", "data", "group", "metric", "limit", "note", "template", "columns")
_WORDS_ONLY = ("title", "note", "group", "limit")
"""Keys whose change leaves every prompt and score as it is."""

# -------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One thing to measure.

    scorer    a method of this axis
    data      rows, or a source that `luthier.data.read` reads; None where the scorer brings its rows
    group     "target" (what was tuned for), "safety" (an audit), "retention" (what must stay) or "drift"
    metric    main metric; default: the scorer's first
    template  makes the prompt from columns: "Q: {question}\\nA:"
    columns   wanted column: column in the data
    """

    name: str
    scorer: Scorer
    data: Any = None
    group: str = "target"
    title: str = ""
    metric: str = ""
    limit: int | None = None
    note: str = ""
    version: int | None = None
    template: str | None = None
    columns: dict[str, str] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The task's rows, at most `limit`."""
        rows = self.scorer.rows()
        if rows is None:
            if self.data is None:
                raise LuthierError(f"task {self.name}: no data: give rows or a source")
            rows = list(self.data) if _is_rows(self.data) else _read(self.data, self.limit)
        return rows if self.limit is None else rows[: self.limit]

    def items(self) -> list[Item]:
        """The task's questions."""
        rows = self.rows()
        if not rows:
            raise LuthierError(f"task {self.name}: its data has no rows")
        return items_of(rows, self.template, self.columns)


def _is_rows(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(r, Mapping) for r in data)


def _read(source: Any, limit: int | None) -> list[dict[str, Any]]:
    from luthier.data import read

    return list(read(source, limit=limit).rows)


def task(spec: Task | str | Mapping[str, Any], folders: Iterable[str | Path] = ()) -> Task:
    """A task from a dict, a task file's name, or a path to one."""
    if isinstance(spec, Task):
        return spec
    told = dict(spec) if isinstance(spec, Mapping) else _from_file(spec, folders)
    if "task" in told and "scorer" not in told:  # {"task": name of a file, ...changes}
        told = {**_from_file(told["task"], folders), **{k: v for k, v in told.items() if k != "task"}}
    for key in ("name", "scorer"):
        if not told.get(key):
            raise LuthierError(f"evaluate.tasks: a task has no '{key}': {_brief(told)}")
    if told.get("group", GROUPS[0]) not in GROUPS:
        raise LuthierError(f"task {told['name']}: group '{told['group']}' is none of {', '.join(GROUPS)}")
    options = {k: v for k, v in told.items() if k not in _OWN}
    scorer = build("evaluation", {"name": told["scorer"], **options}, f"task {told['name']}")
    return Task(**{k: v for k, v in told.items() if k in _OWN and k != "scorer"}, scorer=scorer)


def _brief(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}: {str(v)[:40]}" for k, v in told.items())


def task_files(folders: Iterable[str | Path] = ()) -> dict[str, Path]:
    """Task files by name: those of this package, then those of the user's folders."""
    return {f.stem: f for folder in (TASKS, *folders) for f in sorted(Path(folder).glob("*.yaml"))}


def _from_file(name: str, folders: Iterable[str | Path]) -> dict[str, Any]:
    known = task_files(folders)
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None or not path.exists():
        import difflib

        near = difflib.get_close_matches(name, known, 1, 0.0)
        raise LuthierError(
            f"no task '{name}'" + (f"; nearest: '{near[0]}'" if near else "") + f"; known: {', '.join(known)}"
        )
    told = {"name": path.stem, **read_yaml(path)}
    beside = path.parent / str(told.get("data"))
    return {**told, "data": str(beside)} if beside.is_file() else told


def fingerprint(told: Mapping[str, Any], folder: Path = TASKS) -> str:
    """What decides prompts and scores, as a short hash: when it changes, the version has to."""
    kept = {k: v for k, v in told.items() if k not in (*_WORDS_ONLY, "version")}
    if (folder / str(told.get("data"))).is_file():
        kept["rows"] = (folder / told["data"]).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------ measure


@dataclass
class Measured:
    """What one subject did on every task."""

    name: str
    tasks: dict[str, Task] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)

    def values(self, resamples: int = 2000, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
        """Task, metric: value with interval."""
        return {t: _entries(self.tasks[t].scorer, a, resamples, seed) for t, a in self.answers.items()}

    def predictions(self) -> list[dict[str, Any]]:
        """Rows of `generated_predictions.jsonl`: every generated text with its prompt and label."""
        return [
            {"task": name, "id": i, "prompt": p, "predict": o, "label": r}
            for name, a in self.answers.items()
            if isinstance(scorer := self.tasks[name].scorer, TextScorer) and scorer.keep_texts
            for i, p, o, r in zip(a.ids, a.prompts, a.outputs, a.references, strict=True)
        ]

    def save(self, path: str | Path, memory: bool = True) -> None:
        """Everything but the tasks' definitions, which the recipe holds: json, and tensors beside it.

        Without `memory` (what a base is remembered by) others can be paired with it, but no distance taken from it."""
        import torch
        from safetensors.torch import save_file

        path = Path(path)
        kept: dict[str, Any] = {}
        told: dict[str, Any] = {"name": self.name, "answers": {}}
        for name, a in self.answers.items():
            told["answers"][name] = asdict(
                Answers(**{**vars(a), "keep": None, "stats": {k: v.tolist() for k, v in a.stats.items()}})
            )
            for i, remembered in enumerate((a.keep or ()) if memory else ()):
                kept |= {f"{name}/{i}/{k}": v.contiguous() for k, v in remembered._asdict().items() if v is not None}
        path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        if kept:
            save_file(
                {k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in kept.items()}, _tensors(path)
            )

    @classmethod
    def load(cls, path: str | Path, tasks: Iterable[Task | str | Mapping[str, Any]]) -> Measured:
        """What `save` wrote, for the same tasks."""
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        found = cls(told["name"], {t.name: t for t in map(task, tasks)})
        for name, a in told["answers"].items():
            found.answers[name] = Answers(**{**a, "stats": {k: np.array(v, float) for k, v in a["stats"].items()}})
        if _tensors(Path(path)).exists():
            _restore(found, _tensors(Path(path)))
        return found


def _tensors(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _restore(found: Measured, path: Path) -> None:
    from types import SimpleNamespace

    from safetensors.torch import load_file

    tensors = load_file(path)
    for name in {key.rsplit("/", 2)[0] for key in tensors}:
        n = len(found.answers[name])
        found.answers[name].keep = [
            SimpleNamespace(ids=tensors.get(f"{name}/{i}/ids"), logp=tensors[f"{name}/{i}/logp"]) for i in range(n)
        ]


def measure(
    subject: Subject, tasks: Iterable[Task | str | Mapping[str, Any]], base: Measured | None = None,
    folders: Iterable[str | Path] = (),
) -> Measured:  # fmt: skip
    """Ask the subject about every task. `base`, measured before, is what distances are taken from."""
    found = Measured(subject.name)
    layout = subject.layout if isinstance(subject, Subject) else None
    subject = _Once(subject)  # type: ignore[assignment]
    for one in (task(t, folders) for t in tasks):
        if one.name in found.tasks:
            raise LuthierError(f"evaluate.tasks: two tasks are named '{one.name}': rename one")
        before = base.answers.get(one.name) if base is not None else None
        found.tasks[one.name] = one
        items = one.items()
        _not_among_examples(one.name, layout, items)
        answers = one.scorer.ask(subject, items, before)
        found.answers[one.name] = answers if one.scorer.keep_texts else answers.without_texts()
        known = one.scorer.table(found.answers[one.name])
        if one.metric and one.metric not in known:
            raise LuthierError(f"task {one.name}: metric '{one.metric}' is none of {', '.join(known)}")
    return found


def _not_among_examples(task: str, layout: Layout | None, items: Sequence[Item]) -> None:
    """Raises LuthierError where the constant prompt of a subject's decoder shows the answer to what is asked."""
    told = {query.strip() for query, _ in (layout.examples if layout is not None else ())}
    for item in items:
        if isinstance(item.prompt, str) and item.prompt.strip() in told:
            raise LuthierError(
                f"task {task}: row {item.id} is one of the examples in the constant prompt: take it out of either"
            )


class _Once:
    """A subject that generates the same texts once, however many scorers read them."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.kept: dict[str, list[Any]] = {}

    def generate(self, *asked: Any, **more: Any) -> list[str]:
        return self._once("generate", asked, more)

    def said(self, *asked: Any, **more: Any) -> list[tuple[str, bool]]:
        return self._once("said", asked, more)

    def _once(self, how: str, asked: Any, more: Any) -> list[Any]:
        key = json.dumps([how, asked, more], default=list)
        if key not in self.kept:
            self.kept[key] = getattr(self.subject, how)(*asked, **more)
        return list(self.kept[key])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subject, name)


def _main(one: Task, answers: Answers) -> str:
    return one.metric or next(iter(one.scorer.table(answers)))


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _entries(scorer: Scorer, answers: Answers, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    return {m: _entry(scorer, answers, m, up, resamples, seed) for m, up in scorer.table(answers).items()}


def _is_proportion(scorer: Scorer, metric: str, *sides: Answers) -> bool:
    """Whether a metric is the mean of independent 0/1 values: declared so, or found so in these answers."""
    if any(s.clusters is not None for s in sides) or not all(scorer.decomposes(metric, s) for s in sides):
        return False
    return metric in scorer.proportions or all(np.isin(s.stats[metric], (0.0, 1.0)).all() for s in sides)


def _entry(scorer: Scorer, answers: Answers, metric: str, up: bool, resamples: int, seed: int) -> dict[str, Any]:
    aggregate = scorer.aggregate(metric, answers)
    value = statistics.value(aggregate, answers.stats)
    if _is_proportion(scorer, metric, answers):
        low, high = statistics.wilson(float(answers.stats[metric].sum()), len(answers))
    else:
        low, high = statistics.bootstrap(
            aggregate, answers.stats, resamples=resamples, clusters=answers.clusters, seed=seed
        )
    entry = {
        "value": _number(value), "low": _number(low), "high": _number(high), "n": len(answers), "higher_is_better": up,
    }  # fmt: skip
    return {**entry, "unit": scorer.units[metric]} if metric in scorer.units else entry


# --------------------------------------------------------------------------------------------------------- pair


def pair(
    base: Measured, tuned: Measured, *, resamples: int = 2000, alpha: float = 0.05, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Results of a run: both sides, their differences on the same items, and a verdict for each metric."""
    results: dict[str, Any] = {"tasks": {}, "base": {}, "tuned": {}, "paired": {}}
    for name in (n for n in tuned.tasks if n in base.answers):
        one = tuned.tasks[name]
        a, b = _same_items(name, base.answers[name], tuned.answers[name])
        main = _main(one, b)
        results["tasks"][name] = _about(one, main, a, b)
        results["base"][name] = _entries(one.scorer, a, resamples, seed)
        results["tuned"][name] = _entries(one.scorer, b, resamples, seed)
        results["paired"][name] = {
            m: _difference(one.scorer, m, a, b, resamples, seed) for m in results["tuned"][name]
        }  # fmt: skip
        if (details := one.scorer.details(a)) is not None:
            section = results.setdefault(one.scorer.name, {})
            section[name] = {"base": details, "tuned": one.scorer.details(b)}
    _correct(results)
    _judge(results, tuned, alpha)
    return results


def _about(one: Task, main: str, a: Answers, b: Answers) -> dict[str, Any]:
    notes = [one.note] if one.note else []
    notes += [f"{floor}: {value:.2f}" for floor, value in b.floors.items()]
    if all(np.array_equal(a.stats[k], b.stats[k]) for k in b.stats if k in a.stats):
        notes.append("base and tuned gave the same answers to every item")
    about = {"title": one.title or one.name.replace("_", " "), "group": one.group, "metric": main}
    return {**about, "note": "; ".join(notes)} if notes else about


def _same_items(name: str, a: Answers, b: Answers) -> tuple[Answers, Answers]:
    """Both sides on the items that both have, in one order."""
    if a.ids == b.ids:
        return a, b
    at_a, at_b = ({i: k for k, i in enumerate(x.ids)} for x in (a, b))
    common = [i for i in a.ids if i in at_b]
    if not common:
        raise LuthierError(f"task {name}: base and tuned were asked different items; nothing can be paired")
    return _take(a, [at_a[i] for i in common]), _take(b, [at_b[i] for i in common])


def _take(answers: Answers, at: Sequence[int]) -> Answers:
    lists = ("ids", "prompts", "references", "outputs", "clusters", "notes")
    taken = {k: [v[i] for i in at] for k, v in vars(answers).items() if k in lists and v}
    return Answers(**{**vars(answers), **taken, "stats": {k: v[list(at)] for k, v in answers.stats.items()}})


def _difference(scorer: Scorer, metric: str, a: Answers, b: Answers, resamples: int, seed: int) -> dict[str, Any]:
    aggregate, clusters = scorer.aggregate(metric, b), b.clusters
    difference = statistics.value(aggregate, b.stats) - statistics.value(aggregate, a.stats)
    low, high = statistics.bootstrap_difference(
        aggregate, a.stats, b.stats, resamples=resamples, clusters=clusters, seed=seed
    )
    p, test = _test(scorer, metric, a, b, resamples, seed)
    return {
        "difference": _number(difference), "low": _number(low), "high": _number(high), "p": _number(p), "test": test,
        "n": len(b),
    }  # fmt: skip


def _test(scorer: Scorer, metric: str, a: Answers, b: Answers, resamples: int, seed: int) -> tuple[float, str]:
    if scorer.verdict(metric, 0.0, 0.0) is not None:
        return math.nan, "none"
    if _is_proportion(scorer, metric, a, b):
        return statistics.mcnemar(a.stats[metric], b.stats[metric]), "McNemar, exact"
    if scorer.decomposes(metric, b):
        change = b.stats[metric] - a.stats[metric]
        return statistics.sign_flip(change, clusters=b.clusters, seed=seed), "sign-flip permutation"
    p = statistics.swap_test(
        scorer.aggregate(metric, b), a.stats, b.stats, resamples=resamples, clusters=b.clusters, seed=seed
    )
    return p, "swap permutation"


def _correct(results: dict[str, Any]) -> None:
    """Holm over the main metrics of each group."""
    for group in GROUPS:
        mains = [
            results["paired"][t][about["metric"]] for t, about in results["tasks"].items() if about["group"] == group
        ]
        tested = [e for e in mains if e["p"] is not None]
        if len(tested) < 2:
            continue
        for entry, p in zip(tested, statistics.holm([e["p"] for e in tested]), strict=True):
            entry["p"], entry["test"] = p, f"{entry['test']}, Holm over {len(tested)} tasks"


def _judge(results: dict[str, Any], tuned: Measured, alpha: float) -> None:
    for name, metrics in results["paired"].items():
        for metric, entry in metrics.items():
            up = results["tuned"][name][metric]["higher_is_better"]
            low, high = (math.nan if entry[k] is None else entry[k] for k in ("low", "high"))
            stated = tuned.tasks[name].scorer.verdict(metric, low, high)
            if stated is None:
                clear = entry["p"] is not None and entry["p"] < alpha and bool(entry["difference"])
                stated = ("better" if (entry["difference"] > 0) == up else "worse") if clear else "same"
            entry["verdict"] = stated


def gap_closed(
    base: Measured, between: Measured, ceiling: Measured, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:  # fmt: skip
    """(between - base) / (ceiling - base) by task and metric, on the items that all three have.

    None where the gap itself is not clear (its interval holds 0): a share of nothing says nothing.
    """
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for name in (n for n in between.tasks if n in base.answers and n in ceiling.answers):
        scorer = between.tasks[name].scorer
        low, top = _same_items(name, base.answers[name], ceiling.answers[name])
        low, middle = _same_items(name, low, between.answers[name])
        top, _ = _same_items(name, top, middle)
        out[name] = {}
        for metric in scorer.table(middle):
            aggregate = scorer.aggregate(metric, middle)
            stats, clusters = (low.stats, middle.stats, top.stats), middle.clusters
            gap = statistics.bootstrap_difference(
                aggregate, stats[0], stats[2], resamples=resamples, clusters=clusters, seed=seed
            )
            entry: dict[str, Any] = {"value": None, "low": None, "high": None, "n": len(middle)}
            if gap[0] > 0 or gap[1] < 0:
                found = statistics.bootstrap_share(aggregate, *stats, resamples=resamples, clusters=clusters, seed=seed)
                entry |= dict(zip(("value", "low", "high"), map(_number, found), strict=True))
            out[name][metric] = entry
    return out


def samples(base: Measured, tuned: Measured, limit: int | None = None) -> list[dict[str, Any]]:
    """Answers side by side, the first `limit` items of each task whose items have an answer to show."""
    out = []
    for name in (n for n in tuned.answers if n in base.answers):
        a, b = _same_items(name, base.answers[name], tuned.answers[name])
        scorer = tuned.tasks[name].scorer
        score = scorer.sample
        if not score or not scorer.keep_texts:
            continue
        judged = scorer.metrics.get(score, False)  # a statistic that is no metric does not say right or wrong
        for i in range(len(b) if limit is None else min(limit, len(b))):
            out.append({
                "task": name, "id": b.ids[i], "prompt": b.prompts[i], "reference": b.references[i],
                "base": a.outputs[i], "tuned": b.outputs[i],
                "base_score": _number(a.stats[score][i]) if judged else None,
                "tuned_score": _number(b.stats[score][i]) if judged else None,
            })  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------------------ rescore


def rescore(
    file: str | Path, scorer: str | Mapping[str, Any] | TextScorer, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:  # fmt: skip
    """Score the texts of a `generated_predictions.jsonl` by another scorer; nothing is generated."""
    told = {"name": scorer} if isinstance(scorer, str) else scorer
    scorer = told if isinstance(told, Scorer) else build("evaluation", dict(told), "rescore")
    if not isinstance(scorer, TextScorer):
        raise LuthierError(f"{scorer.name} needs the model: only scorers of generated text can score kept predictions")
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    out = {}
    for name in dict.fromkeys(r.get("task", "") for r in rows):
        mine = [r for r in rows if r.get("task", "") == name]
        items = items_of(
            [{"id": r.get("id", i), "prompt": r["prompt"], "answer": r["label"]} for i, r in enumerate(mine)]
        )
        out[name] = _entries(scorer, scorer.score([r["predict"] for r in mine], items), resamples, seed)
    return out
