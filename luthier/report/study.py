"""The report of a study: its questions answered, and every line of its table, set by set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report import words
from luthier.report.evidence import Spread, mapping, real, rows
from luthier.report.page import (
    banner,
    gravest_first,
    head_facts,
    read_json,
    repeat_view,
    safe_link,
    state_banners,
    tip,
    write_page,
)

COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("trainable_parameters", "Trained", words.count),
    ("trained_share", "of the base", lambda v: words.percent(v, 1)),
    ("peak_memory_bytes", "Peak memory", words.size),
    ("train_seconds", "Training", words.duration),
    ("stored_bytes", "Stored", words.size),
    ("prompt_tokens", "Prompt tokens", words.number),
)


def write_study_report(folder: str | Path) -> Path:
    """Read compare.json of a study and write report.html; return the path."""
    folder = Path(folder)
    found, problem = read_json(folder / "compare.json")
    return write_page(folder, "study.html.j2", _view(found, problem, folder.name))


def _view(found: Mapping[str, Any], problem: str, name: str) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    manifest = {**found, **mapping(found.get("manifest"))}
    banners = state_banners(manifest, "study")
    if problem:
        banners.append(banner("bad", "No study.", f"{problem}."))
    lines, questions = rows(found.get("table")), rows(found.get("questions"))
    failed = [line for line in lines if line.get("why")]
    if failed:
        first = failed[0]
        text = f"{len(failed)} of {len(lines)} lines are empty; the first, {first.get('method')}: {first.get('why')}"
        banners.append(banner("warn", "Incomplete.", text))
    sets = mapping(found.get("sets"))
    metric = str(found.get("metric") or "")
    return {
        "title": str(found.get("name") or name),
        "head": [*head_facts(manifest), ("Sets", str(len(sets))), ("Lines", str(len(lines)))],
        "banners": gravest_first(banners),
        "verdict": _verdict(questions),
        "questions": [_question(q) for q in questions],
        "metrics": [_heading(m) for m in _metrics(lines)],
        "costs": [title for _, title, _ in COSTS],
        "sets": [_set(name, mapping(told), lines, metric, found.get("comparisons")) for name, told in sets.items()],
        "joint": "all" in (found.get("comparisons") or []),
        "repeat": repeat_view(manifest),
    }  # fmt: skip


def _verdict(questions: Sequence[Mapping[str, Any]]) -> str:
    """The first answer that claims something, else that none does."""
    answers = [a for q in questions for a in rows(q.get("answers"))]
    sure = [a for a in answers if a.get("verdict") in ("better", "worse")]
    if not sure:
        return "No difference is clear." if answers else "Nothing was compared."
    return (
        f"{sure[0]['text']}."
        if len(sure) == 1
        else f"{sure[0]['text']}. {len(sure)} of {len(answers)} differences are clear."
    )


def _question(told: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"better": "better", "worse": "worse"}
    answers = [
        {"text": a.get("text"), "kind": kinds.get(str(a.get("verdict")), "quiet")} for a in rows(told.get("answers"))
    ]
    return {"text": told.get("question"), "answers": answers}


def _metrics(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(m for line in lines for m in mapping(line.get("metrics"))))


def _heading(metric: str) -> dict[str, str]:
    task, _, name = metric.rpartition(".")
    return {"title": words.metric_words(name), "about": task}


def _set(
    name: str, told: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], metric: str, comparisons: Any
) -> dict[str, Any]:  # fmt: skip
    """One set's table, the best by the target first."""
    mine = [line for line in lines if line.get("set") == name]

    def order(line: Mapping[str, Any]) -> float:
        return -(real(mapping(mapping(line.get("metrics")).get(metric)).get("mean")) or 0.0)

    link = safe_link(f"{name}/report.html") if name in (comparisons or []) else ""
    counts = ", ".join(f"{words.count(told.get(part))} {part}" for part in ("train", "validation", "test"))
    about = f"{counts} rows; {words.count(told.get('left_out'))} test rows left out, whose intent is among the training rows."
    return {
        "name": name,
        "about": about,
        "link": link,
        "rows": [_line(line, lines) for line in sorted(mine, key=order)],
    }


def _line(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = mapping(line.get("metrics"))
    cells = []
    for metric in _metrics(lines):
        told = mapping(figures.get(metric))
        values = tuple(v for v in map(real, told.get("values") or ()) if v is not None)
        found = Spread(values) if values else None
        text = words.number(found.mean) if found else ""
        cells.append(
            {"text": text, "sd": words.sd_words(found, words.number) if found else "", "tip": tip(found and found.mean)}
        )
    costs = [show(line.get(key)) if real(line.get(key)) is not None else "" for key, _, show in COSTS]
    return {
        "method": line.get("method"), "model": line.get("model"), "kind": line.get("kind"), "seeds": line.get("seeds"),
        "cells": cells, "costs": costs, "why": line.get("why") or "",
    }  # fmt: skip
