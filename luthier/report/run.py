"""The report of one run: what changed, how it learned, what it cost, what it broke, and how to repeat it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from luthier.report import charts, words
from luthier.report.evidence import GROUPS, Change, Measure, changes, mapping, real, rows
from luthier.report.looks import looks
from luthier.report.page import (
    banner,
    gravest_first,
    head_facts,
    read_json,
    read_metrics,
    read_rows,
    rejection_banners,
    repeat_view,
    series,
    state_banners,
    tip,
    two_sizes,
    unique,
    write_page,
)

GROUP_TITLES = {
    "target": ("Target", "what the run was meant to change"),
    "safety": ("Safety", "what it must still refuse, and still answer"),
    "retention": ("Retention", "what it was meant to keep"),
    "drift": ("Drift", "how far it moved in general"),
    "other": ("Other", "measured, with no stated role"),
}
MAX_SAMPLES, SAMPLES_OPEN = 120, 6
MAX_TEXT, MAX_COMPARED_WORDS = 6000, 600
_WORD = re.compile("[\u2e80-\u9fff\uac00-\ud7af]|\\w+|\\s+|[^\\w\\s]")


def write_run_report(folder: str | Path) -> Path:
    """Read the files of a run folder and write its report.html; return the path.

    Missing files and keys are shown as missing. The same files give the same bytes.
    """
    folder = Path(folder)
    manifest, _ = read_json(folder / "run.json")
    results, problem = read_json(folder / "results.json")
    metrics, broken = read_metrics(folder)
    samples, _ = read_rows(folder / "samples.jsonl")
    return write_page(folder, "run.html.j2", _view(manifest, results, problem, metrics, broken, samples))


def _view(
    manifest: Mapping[str, Any],
    results: Mapping[str, Any],
    problem: str,
    metrics: Sequence[Mapping[str, Any]],
    broken: int,
    samples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    found, method = changes(results), mapping(manifest.get("method"))
    who = str(method.get("tuner") or method.get("objective") or manifest.get("name") or "The run")
    steps = [step for step in (real(row.get("step")) for row in metrics) if step is not None]
    last = int(max(steps)) if steps else None
    status = str(manifest.get("status") or "")
    cost = mapping(results.get("cost"))
    return {
        "title": str(manifest.get("name") or "Unnamed run"),
        "head": head_facts(manifest),
        "method": {key: str(method.get(key) or "") for key in ("tuner", "objective", "title", "paper", "summary")},
        "banners": _banners(manifest, found, problem, metrics, broken),
        "verdict": words.run_verdict(who, found, status, last),
        "price": words.cost_sentence(cost),
        "groups": _groups(found),
        "axis": charts.strip_axis(),
        "effects": _effects(found),
        "audit": _audit(mapping(results.get("audit")), found),
        "looks": looks(results.get("analysis")),
        "curves": _curves(metrics),
        "cards": _cards(cost),
        "reliability": _reliability(mapping(results.get("calibration")), found),
        "samples": _samples(samples, found),
        "repeat": repeat_view(manifest),
    }


def _banners(
    manifest: Mapping[str, Any],
    found: Sequence[Change],
    problem: str,
    metrics: Sequence[Mapping[str, Any]],
    broken: int,
) -> list[dict[str, str]]:
    """Warnings, the gravest first."""
    out = state_banners(manifest, "run") if manifest else [banner("warn", "No manifest.", "run.json is missing.")]
    nans = [step for step, value in series(metrics, "loss") if math.isnan(value)]
    if nans:
        text = f"From step {nans[0]:.0f} on, {len(nans)} of the logged losses are not numbers."
        out.append(banner("bad", "The training loss broke.", text))
    if problem and manifest.get("status") in (None, "done"):
        out.append(banner("warn", "No results.", f"{problem}, so nothing can be compared."))
    elif found and not any(change.base for change in found):
        out.append(banner("warn", "No baseline.", "The model was not measured before tuning."))
    if broken:
        lines = "1 line" if broken == 1 else f"{broken} lines"
        out.append(banner("note", "Metrics incomplete.", f"{lines} of metrics.jsonl could not be read."))
    return gravest_first(out + rejection_banners(manifest))


def judgement(change: Change) -> dict[str, str]:
    """Arrow (the direction of the number), word and class (the judgement)."""
    if change.tuned is None:
        return {"arrow": "", "word": words.NOT_MEASURED, "kind": "open"}
    if change.base is None:
        return {"arrow": "", "word": "no baseline", "kind": "open"}
    if not change.verdict:
        return {"arrow": "", "word": "not tested", "kind": "open"}
    if change.verdict == "same":
        return {"arrow": "\u2248", "word": "no clear change", "kind": "same"}
    up = change.tuned.value > change.base.value
    return {"arrow": "\u2191" if up else "\u2193", "word": change.verdict, "kind": change.verdict}


def _side(side: Measure | None, change: Change) -> dict[str, str]:
    """A value as text, with the exact value and its interval for the tooltip."""
    if side is None:
        return {"text": words.NOT_MEASURED, "tip": ""}
    found = [f"exactly {tip(side.value, side.unit)}"]
    if side.low is not None and side.high is not None:
        found.append(f"95% interval {tip(side.low)} to {tip(side.high)}")
    if side.n is not None:
        found.append(f"{side.n:,} items")
    return {"text": words.value_words(side.value, change.is_rate, side.unit), "tip": "; ".join(found)}


def _row(change: Change) -> dict[str, Any]:
    """One row of the before/after table."""
    base, tuned, judged = _side(change.base, change), _side(change.tuned, change), judgement(change)
    label = f"{words.what(change)}: base {base['text']}, tuned {tuned['text']}, {judged['word']}"
    return {
        "title": change.title,
        "metric": words.metric_words(change.metric),
        "better": {True: "higher is better", False: "lower is better", None: ""}[change.higher_is_better],
        "main": change.main,
        "strip": charts.change_strip(change, label),
        "base": base,
        "tuned": tuned,
        "difference": "" if change.difference is None else words.signed(change.difference, change.is_rate),
        "interval": words.interval(change),
        "p": words.p_words(change.p),
        "test": change.test,
        "n": "" if change.n is None else f"{change.n:,}",
        **judged,
    }


def _groups(found: Sequence[Change]) -> list[dict[str, Any]]:
    """The rows by group; a group without tasks is left out."""
    out = []
    for group in (*GROUPS, "other"):
        inside = [_row(change) for change in found if change.group == group]
        if inside:
            out.append({"title": GROUP_TITLES[group][0], "about": GROUP_TITLES[group][1], "rows": inside})
    return out


def _effects(found: Sequence[Change]) -> list[dict[str, str]]:
    """A sentence for each retention and drift task."""
    return [
        {"title": c.title, "group": c.group, "text": words.side_effect(c), "note": c.note, **judgement(c)}
        for c in found
        if c.main and c.group not in ("target", "safety")
    ]


def _audit(told: Mapping[str, Any], found: Sequence[Change]) -> dict[str, Any]:
    """The gate, each loss that it judges, refusals by category, and their curve; empty where there was no audit."""
    if not told:
        return {}
    titles = {change.task: change.title for change in found}
    gate = mapping(told.get("gate"))
    losses = [
        {
            "title": titles.get(str(one.get("task")), str(one.get("task"))), "metric": words.metric_words(str(one.get("metric"))),
            "at_most": _loss(one.get("at_most")), "allowed": _loss(one.get("allowed")), "passed": one.get("passed") is True,
        }
        for one in rows(gate.get("losses"))
    ]  # fmt: skip
    categories = [
        {
            "title": titles.get(str(one.get("task")), str(one.get("task"))), "category": str(one.get("category")),
            "n": words.count(one.get("n")), "base": _rate_with_bounds(one.get("base")),
            "tuned": _rate_with_bounds(one.get("tuned")), "p": words.p_words(real(one.get("p"))),
        }
        for one in rows(told.get("categories"))
    ]  # fmt: skip
    small = [
        f"{titles.get(task, task)}: {words.points(share)}"
        for task, share in ((t, real(v)) for t, v in mapping(told.get("shows")).items())
        if share is not None
    ]
    half = real(told.get("half"))
    return {
        "passed": gate.get("passed") is True,
        "losses": losses,
        "categories": categories,
        "shows": words.listed(small),
        "limits": str(told.get("limits") or ""),
        "repairs": [{k: str(one.get(k) or "") for k in ("what", "command")} for one in rows(told.get("repairs"))],
        "curves": _audit_curves(rows(told.get("curve")), titles),
        "half": "" if half is None else f"Half of the refusals were gone after {half:.0f} steps.",
        "texts": "" if told.get("texts") == "kept" else "Prompts and answers of the audit were not kept.",
    }


def _loss(value: Any) -> str:
    """A loss in points; what could not be bounded is said to be so."""
    found = real(value)
    return words.NOT_MEASURED if found is None else words.points(found)


def _rate_with_bounds(entry: Any) -> dict[str, str]:
    """A share, and its 95% interval for the tooltip."""
    value, low, high = (real(mapping(entry).get(key)) for key in ("value", "low", "high"))
    text = words.NOT_MEASURED if value is None else words.rate(value)
    return {
        "text": text,
        "tip": f"95% interval {tip(low)} to {tip(high)}" if low is not None and high is not None else "",
    }


def _audit_curves(looks: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """A small chart for each task that was asked along the way; shares on one scale."""
    out = []
    for task in unique([key for look in looks for key in look if key not in ("step", "epoch")]):
        points = [(x, y) for look in looks if (x := real(look.get("step"))) is not None
                  and (y := real(look.get(task))) is not None]  # fmt: skip
        title, share = titles.get(task, task), all(0 <= y <= 1 for _, y in points)
        if points:
            drawn = charts.line_chart(
                [charts.Line(title, points, "held")], label=_described(title, points), size=(320, 170),
                y_range=(0.0, 1.0) if share else None,
            )  # fmt: skip
            out.append({"title": title, "svg": drawn})
    return out


_NAMED_CURVES = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm"}
_NOT_CURVES = frozenset({"step", "epoch", "loss", "tokens_per_second", "tokens", "time", "seconds"})
_HELD_OUT = "eval_"
"""Before the name of what was measured on held-out rows: it is drawn over the same of the training rows."""


def _described(name: str, points: Sequence[charts.Point]) -> str:
    """A curve in words, for readers who do not see it."""
    solid = [point for point in points if not math.isnan(point[1])]
    first, last = words.number(solid[0][1]), words.number(solid[-1][1])
    return f"{name}: {first} at step {solid[0][0]:.0f}, {last} at step {solid[-1][0]:.0f}"


def _has_values(points: Sequence[charts.Point]) -> bool:
    """Whether anything can be drawn."""
    return any(not math.isnan(y) for _, y in points)


def _loss_figure(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The training loss, each step and smoothed, with the held-out loss over it."""
    loss, held = series(metrics, "loss"), series(metrics, "eval_loss")
    lines, label = [], []
    if _has_values(loss):
        lines = [charts.Line("each step", loss, "raw"), charts.Line("smoothed", charts.smooth(loss))]
        label.append(_described("Training loss", charts.smooth(loss)))
    if _has_values(held):
        lines.append(charts.Line("held-out", held, "held"))
        label.append(_described("held-out loss", held))
    if not lines:
        return []
    drawn = two_sizes(lambda size: charts.line_chart(lines, label="; ".join(label), size=size), (660, 400), (400, 250))
    return [{"title": "Loss", "svg": drawn, "keys": [line.kind for line in lines], "wide": True}]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss first, then learning rate, gradient norm and whatever else the method logged."""
    out = _loss_figure(metrics)
    logged = dict.fromkeys(
        key for row in metrics for key in row if key not in _NOT_CURVES and not key.startswith(_HELD_OUT)
    )
    for key in [*(k for k in _NAMED_CURVES if k in logged), *(k for k in logged if k not in _NAMED_CURVES)]:
        points = series(metrics, key)
        if len(points) < 2 or not _has_values(points):
            continue
        title = _NAMED_CURVES.get(key, words.first_up(words.metric_words(str(key))))
        lines, label, held = [charts.Line(title, points)], _described(title, points), series(metrics, _HELD_OUT + key)
        if _has_values(held):
            lines.append(charts.Line("held-out", held, "held"))
            label += f"; {_described('held-out', held)}"
        drawn = charts.line_chart(lines, label=label, size=(320, 170))
        out.append({"title": title, "svg": drawn, "keys": [line.kind for line in lines[1:]], "wide": False})
    return out[:9]


def _card(label: str, value: Any, show: Any, unit: str, *details: str) -> dict[str, str]:
    """One cost card; the exact value is its tooltip."""
    known = [detail for detail in details if words.NOT_MEASURED not in detail]
    return {"label": label, "value": show(value), "tip": tip(value, unit), "detail": " \u00b7 ".join(known)}


def _cards(cost: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the run cost."""
    get, base = cost.get, words.base_parameters(cost)
    trained, steps = get("trainable_parameters"), get("steps")
    share = f"{words.percent(trained, base)} of {words.count(base)}"
    return [
        _card("Trained parameters", trained, words.count, "parameters", share),
        _card(
            "Stored", get("stored_bytes"), words.size, "bytes", f"{words.count(get('stored_parameters'))} parameters"
        ),
        _card(
            "Peak memory",
            get("peak_memory_bytes"),
            words.size,
            "bytes",
            f"optimiser {words.size(get('optimizer_bytes'))}",
            f"saved for backward {words.size(get('saved_tensor_bytes'))}",
        ),
        _card(
            "Training time",
            get("train_seconds"),
            words.duration,
            "seconds",
            f"{words.duration(get('step_seconds'))} a step",
            f"{words.count(steps)} steps",
        ),
        _card(
            "Compute",
            get("train_flops"),
            words.flops,
            "FLOP",
            f"forward {words.flops(get('forward_flops'))}",
            f"backward {words.flops(get('backward_flops'))}",
        ),
        _card(
            "Tokens per second",
            get("tokens_per_second"),
            lambda v: words.count(_rounded(v)),
            "tokens per second",
            f"{words.count(get('tokens'))} in all",
        ),
    ]


def _rounded(value: Any) -> float | None:
    """A speed to whole tokens where it is large enough."""
    found = real(value)
    return found if found is None or found < 100 else float(round(found))


def _bins(entry: Any) -> list[charts.Bin]:
    """The bins that can be drawn."""
    out = []
    for one in rows(mapping(entry).get("bins")):
        numbers = [real(one.get(key)) for key in ("confidence", "accuracy", "count")]
        known = [number for number in numbers if number is not None]
        if len(known) == len(numbers):
            out.append(charts.Bin(*known))
    return out


def _reliability(calibration: Mapping[str, Any], found: Sequence[Change]) -> list[dict[str, Any]]:
    """A pair of diagrams for each task that has one."""
    titles, out = {change.task: change.title for change in found}, []
    for task, entry in calibration.items():
        title, sides = titles.get(task, str(task)), []
        for side in ("base", "tuned"):
            part = mapping(mapping(entry).get(side))
            ece = words.number(part.get("ece"))
            label = f"Reliability of the {side} model on {title}, expected calibration error {ece}"
            sides.append({"name": side, "ece": ece, "svg": charts.reliability(_bins(part), label=label)})
        if any(side["svg"] for side in sides):
            out.append({"title": title, "sides": sides, "text": _calibration_words(entry)})
    return out


def _calibration_words(entry: Any) -> str:
    """Over- or underconfidence of the tuned model in a sentence."""
    bins = [one for one in _bins(mapping(entry).get("tuned")) if one.count > 0]
    if not bins:
        return ""
    items = sum(one.count for one in bins)
    gap = sum((one.confidence - one.accuracy) * one.count for one in bins) / items
    if abs(gap) < 0.02:
        return "After tuning, confidence and accuracy agree on average."
    more, less = ("higher", "overconfident") if gap > 0 else ("lower", "underconfident")
    return f"After tuning, confidence is {words.points(gap)} {more} than accuracy on average: the model is {less}."


def _text(value: Any) -> str:
    """A sample field as text, long ones cut with a note of how much is missing."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} \u2026 [{len(text) - MAX_TEXT:,} more characters in samples.jsonl]"


def differing(text: str, other: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether its words are absent from the other text at that place.

    Nothing is marked where less than a quarter is shared (everything would be) or where the texts are very long.
    """
    mine, theirs = _WORD.findall(text), _WORD.findall(other)
    if not mine or not theirs or max(len(mine), len(theirs)) > MAX_COMPARED_WORDS:
        return [(text, False)] if text else []
    matcher = difflib.SequenceMatcher(None, mine, theirs, autojunk=False)
    if matcher.ratio() < 0.25 and len(theirs) > 4:
        return [(text, False)]
    pieces: list[tuple[str, bool]] = []
    for kind, start, end, _, _ in matcher.get_opcodes():
        if end > start:
            part = "".join(mine[start:end])
            pieces.append((part, kind != "equal" and not part.isspace()))
    return pieces


def mark(score: Any) -> dict[str, str]:
    """right, wrong, partly or not scored, with a sign and a word."""
    found = real(score)
    if found is None:
        return {"kind": "open", "sign": "\u00b7", "word": "not scored"}
    if found >= 1:
        return {"kind": "right", "sign": "\u2713", "word": "right"}
    if found <= 0:
        return {"kind": "wrong", "sign": "\u2717", "word": "wrong"}
    return {"kind": "partly", "sign": "\u25d0", "word": f"scored {found:.2f}"}


FATES = {
    "broken": "got worse",
    "fixed": "got better",
    "wrong": "still wrong",
    "right": "still right",
    "open": "not compared",
}


def _fate(row: Mapping[str, Any]) -> str:
    """What tuning did to one sample."""
    before, after = real(row.get("base_score")), real(row.get("tuned_score"))
    if before is None or after is None:
        return "open"
    if before != after:
        return "fixed" if after > before else "broken"
    return "right" if after >= 1 else "wrong"


def _sample(row: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    """One sample with its two answers, words that differ marked."""
    reference, task = _text(row.get("reference")), str(row.get("task") or "")
    base, tuned = _text(row.get("base")), _text(row.get("tuned"))
    against = (reference, reference) if reference else (tuned, base)
    return {
        "task": titles.get(task, task) or "no task",
        "id": str(row.get("id") if row.get("id") is not None else ""),
        "prompt": _text(row.get("prompt")),
        "reference": reference,
        "answers": [
            {"name": "Base", "pieces": differing(base, against[0]), **mark(row.get("base_score"))},
            {"name": "Tuned", "pieces": differing(tuned, against[1]), **mark(row.get("tuned_score"))},
        ],
        "fate": _fate(row),
    }


def _samples(found: Sequence[Mapping[str, Any]], known: Sequence[Change]) -> dict[str, Any]:
    """A mix of all fates in turn, the count of each, and how many are not shown."""
    by_fate: dict[str, list[Mapping[str, Any]]] = {fate: [] for fate in FATES}
    for row in found:
        by_fate[_fate(row)].append(row)
    turns = [row for turn in zip_longest(*by_fate.values()) for row in turn if row is not None]
    titles = {change.task: change.title for change in known}
    shown = [_sample(row, titles) for row in turns[:MAX_SAMPLES]]
    fates = [{"key": key, "name": FATES[key], "count": len(inside)} for key, inside in by_fate.items() if inside]
    return {
        "first": shown[:SAMPLES_OPEN],
        "rest": shown[SAMPLES_OPEN:],
        "fates": fates,
        "names": FATES,
        "total": len(found),
        "left": len(found) - len(shown),
    }
