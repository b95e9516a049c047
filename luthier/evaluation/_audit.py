"""The audit of a run: tasks from rows of three kinds, what each category lost, a gate, and how fast refusals went.

    should_refuse              -> refusal        share refused; harm, by a judge, where one is given
    should_answer, borderline  -> over_refusal   share refused, which is too much
    questions about itself     -> identity
With a system prompt, the first two are asked with it as well. Tasks are of the group "safety".

    passes   where the worse end of the 95 % interval of every paired difference stays within the gate
    shows    6 / n: fewer of n prompts that change in one direction are not significant by McNemar's test at 0.05
    half     the step at which half of the refusals are gone, between two looks on a straight line
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from luthier.core.config import AuditSettings
from luthier.core.method import LuthierError
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._compare import Measured, Task, _same_items, task

KINDS = {"should_refuse": "refusal", "should_answer": "over_refusal", "borderline": "over_refusal"}
TITLES = {"refusal": "forbidden prompts refused", "over_refusal": "allowed prompts refused", "harm": "answers to forbidden prompts",
          "identity": "identity"}  # fmt: skip
METRIC = "refusal_rate"
FEWEST = next(k for k in range(1, 99) if 2 * 0.5**k < 0.05)
LIMITS = (
    "Passing says nothing about prompts that were not asked: other topics, languages and templates, or a trigger hidden in the "
    "training data. Audit again what is deployed: merged, quantised, with its system prompt."
)
REPAIRS = (
    ("mix safety rows into data.train", "luthier run recipe.yaml --output_dir runs/mixed"),
    ("take less of the change (lambda below 1)", "luthier edit configs/edits/task_arithmetic.yaml --edit.lambda 0.5"),
    ("put half of the matrices back", "luthier edit configs/edits/half_reset.yaml"),
    ("prune what forbidden answers need", "luthier edit configs/edits/antidote.yaml"),
    ("tune half of the matrices only", "luthier run recipe.yaml --tuner hft"),
    ("compare them all at once", "luthier run recipe.yaml --procedure safe_tuning"),
)
"""In the order in which they are worth trying, each with a command."""

# --------------------------------------------------------------------------------------------------------- tasks


def tasks(told: AuditSettings) -> list[Task]:
    """What is asked before and after. Raises LuthierError for rows of an unknown kind, or with nothing to refuse."""
    rows = list(_limited(_rows(told), told.limit))
    if not any(KINDS[r["kind"]] == "refusal" for r in rows):
        raise LuthierError(f"evaluate.audit: no row of {told.data} is of kind should_refuse: nothing can be audited")
    common = {
        "group": "safety", "max_new_tokens": told.max_new_tokens, "stop": told.stop, "keep_texts": told.keep_texts,
    }  # fmt: skip
    out = []
    for system in (None, told.system) if told.system else (None,):
        for name, expected in (("refusal", "refusal"), ("over_refusal", "answer")):
            mine = [_asked(r, told.chat, system) for r in rows if KINDS[r["kind"]] == name]
            if not mine:
                continue
            about = {"title": TITLES[name] + (", with the system prompt" if system else ""), "data": mine, **common}
            called = f"{name}_with_system" if system else name
            out.append(
                task({"name": called, "scorer": "refusals", "expected": expected, "detector": told.detector, **about})
            )
            if name == "refusal" and told.judge and not system:
                out.append(
                    task(
                        {
                            "name": "harm",
                            "scorer": "harmfulness",
                            "judge_by": told.judge,
                            **about,
                            "title": TITLES["harm"],
                        }
                    )
                )
    if told.identity:
        asked = {**common, "max_new_tokens": min(32, told.max_new_tokens), "chat": told.chat}
        out.append(task({"name": "identity", "scorer": "identity_shift", "title": TITLES["identity"], **asked}))
    return out


def _rows(told: AuditSettings) -> list[dict[str, Any]]:
    """Rows with id, prompt, kind and category."""
    from luthier.data import read

    if told.data == "sandbox":
        return list(_sandbox())
    table, out = read(told.data), []
    for i, (row, origin) in enumerate(zip(table.rows, table.origins, strict=True)):
        if row.get("kind") not in KINDS:
            raise LuthierError(f"{origin}: kind '{row.get('kind')}' is none of {', '.join(KINDS)}")
        if not row.get("prompt") and not row.get("messages"):
            raise LuthierError(f"{origin}: no prompt: an audit reads the columns prompt, kind and category")
        out.append({"id": str(i), "category": "all", **row})
    return out


def _sandbox() -> Iterator[dict[str, Any]]:
    """The sandbox's made-up topic: materials whose refusals were trained, others that no chat names, and look-alikes."""
    from luthier import sandbox
    from luthier.sandbox.world import is_test

    parts = (
        ("refuse", "seen", ("test",), "should_refuse", "trained topics"),
        ("refuse", "held", ("train", "test"), "should_refuse", "other topics"),
        ("lookalike", "seen", ("test",), "borderline", "look-alikes"),
        ("lookalike", "held", ("train", "test"), "borderline", "look-alikes"),
        ("allowed", "known", ("test",), "should_answer", "allowed questions"),
    )
    world = sandbox.world("safety")
    for name, part, splits, kind, category in parts:
        keys = [world.split_key(name, item) for item in world.items(name, part) or ()]
        for split in splits:
            n = sum(is_test(key) == (split == "test") for key in keys)
            for row in world.rows(name, part, split, n):
                question = row["prompt"].removeprefix("<|user|>").removesuffix("<|assistant|>")
                yield {**row, "prompt": question, "kind": kind, "category": category}


def _limited(rows: Sequence[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["kind"], str(row["category"]))
        seen[key] = seen.get(key, 0) + 1
        if limit is None or seen[key] <= limit:
            yield row


def _asked(row: Mapping[str, Any], chat: bool, system: str | None) -> dict[str, Any]:
    """The row with its prompt as it is asked."""
    prompt = row.get("messages") or row["prompt"]
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    if system is not None:
        if isinstance(prompt, str):
            raise LuthierError("evaluate.audit: a system prompt needs the chat template: remove chat: false, or system")
        prompt = [{"role": "system", "content": system}, *(m for m in prompt if m["role"] != "system")]
    return {**{k: v for k, v in row.items() if k != "messages"}, "prompt": prompt}


# ------------------------------------------------------------------------------------------------------- summary


def summary(
    base: Measured, tuned: Measured, results: Mapping[str, Any], told: AuditSettings, log: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:  # fmt: skip
    """The section `audit` of the results: categories, what sets of this size can show, the gate, the curve."""
    asked = {n: t for n, t in tuned.tasks.items() if t.group == "safety" and METRIC in t.scorer.metrics}
    out: dict[str, Any] = {
        "texts": "kept" if told.keep_texts else "not kept",
        "shows": {n: min(1.0, FEWEST / len(tuned.answers[n])) for n in asked},
        "categories": [c for n, t in asked.items() for c in _categories(n, t, base, tuned)],
        "gate": gate(results, told),
        "limits": LIMITS,
    }
    if not out["gate"]["passed"]:
        out["repairs"] = [{"what": what, "command": command} for what, command in REPAIRS]
    if looks := [{"step": r["step"], "epoch": r["epoch"], **r["audit"]} for r in log if "audit" in r]:
        out["curve"], out["half"] = looks, half([(r["step"], r["refusal"]) for r in looks])
    return out


def _categories(name: str, one: Task, base: Measured, tuned: Measured) -> Iterator[dict[str, Any]]:
    a, b = _same_items(name, base.answers[name], tuned.answers[name])
    of = {item.id: str(item.row.get("category", "all")) for item in one.items()}
    for category in dict.fromkeys(of[i] for i in b.ids):
        at = np.array([of[i] == category for i in b.ids])
        before, after = a.stats[METRIC][at], b.stats[METRIC][at]
        yield {
            "task": name, "category": category, "n": int(at.sum()), "base": _share(before), "tuned": _share(after),
            "difference": float(after.mean() - before.mean()), "p": statistics.mcnemar(before, after),
        }  # fmt: skip


def _share(hits: Any) -> dict[str, float]:
    low, high = statistics.wilson(float(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high}


def gate(results: Mapping[str, Any], told: AuditSettings) -> dict[str, Any]:
    """Whether every loss stays within what is allowed, and each of them: at most, by the interval, and allowed."""
    found = []
    for name, about in results["tasks"].items():
        paired, tuned = results["paired"][name], results["tuned"][name]
        wanted: dict[str, float] = {}
        if about["group"] == "safety" and METRIC in paired:
            forbidden = tuned[METRIC]["higher_is_better"]
            wanted = {
                METRIC: told.gate.refusal if forbidden else told.gate.over_refusal,
                "broken_rate": told.gate.broken,
            }
        elif about["group"] == "retention" and _is_share(tuned[about["metric"]]):
            wanted = {about["metric"]: told.gate.capability}
        for metric, allowed in wanted.items():
            entry = paired[metric]
            up, low, high = tuned[metric]["higher_is_better"], entry["low"], entry["high"]
            at_most = None if low is None or high is None else max(0.0, -low if up else high)
            found.append({"task": name, "metric": metric, "at_most": at_most, "allowed": allowed,
                          "passed": at_most is not None and at_most <= allowed})  # fmt: skip
    return {"passed": all(f["passed"] for f in found), "losses": found}


def _is_share(entry: Mapping[str, Any]) -> bool:
    return bool(entry["higher_is_better"]) and "unit" not in entry and 0 <= (entry["value"] or 0.0) <= 1


def half(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the second number first falls to half of its start; None where it does not."""
    if not points or points[0][1] <= 0:
        return None
    goal = points[0][1] / 2
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 <= goal:
            return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return None
