"""The report of an alignment grid: who is best from where, what cannot be told apart, and what more pairs bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report import charts, words
from luthier.report.evidence import mapping, real, rows
from luthier.report.page import (
    banner,
    gravest_first,
    head_facts,
    read_json,
    repeat_view,
    safe_link,
    state_banners,
    write_page,
)

FIGURES = (
    ("logp_chosen", "Chosen", "log-probability, nats"),
    ("logp_rejected", "Rejected", "log-probability, nats"),
    ("ended", "Ended", "answers that end"),
    ("length", "Length", "characters an answer"),
    ("steps", "Steps", "of the optimiser"),
    ("epochs", "Epochs", "over the pairs"),
)
SIZE = (250.0, 170.0)


def write_grid_report(folder: str | Path) -> Path:
    """Read compare.json of an alignment grid and write report.html; return the path."""
    folder = Path(folder)
    found, problem = read_json(folder / "compare.json")
    return write_page(folder, "grid.html.j2", _view(found, problem, folder.name))


def _view(found: Mapping[str, Any], problem: str, name: str) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    manifest, grid = {**found, **mapping(found.get("manifest"))}, mapping(found.get("grid"))
    lines, starts, methods = rows(grid.get("lines")), _names(grid.get("starts")), _names(grid.get("methods"))
    groups, findings = _names(grid.get("groups")), _names(grid.get("findings"))
    banners = state_banners(manifest, "grid")
    if problem:
        banners.append(banner("bad", "No grid.", f"{problem}."))
    failed = [line for line in lines if line.get("why")]
    if failed:
        text = f"{len(failed)} of {len(lines)} lines are empty; the first, {failed[0].get('method')}: {failed[0].get('why')}"
        banners.append(banner("warn", "Incomplete.", text))
    seeds = max((int(real(line.get("seeds")) or 0) for line in lines), default=0)
    if lines and seeds < 3:
        text = (
            "Intervals are of test items alone; that another seed would say the same is not shown. Run at least three."
        )
        banners.append(banner("warn", "One seed." if seeds < 2 else "Two seeds.", text))
    links = found.get("comparisons") or []
    return {
        "title": str(found.get("name") or name),
        "head": [*head_facts(manifest), ("Starts", str(len(starts))), ("Methods", str(len(methods)))],
        "banners": gravest_first(banners),
        "verdict": f"At the largest size: {'; '.join(findings)}." if findings else "Nothing was compared.",
        "groups": [_group(g, lines, grid, starts, methods) for g in groups],
        "figures": [{"title": title, "about": about} for _, title, about in FIGURES],
        "group_names": groups,
        "starts": [
            {"name": s, "link": safe_link(f"{s}/report.html") if s in links else "", "rows": _rows(s, lines, grid, groups)}
            for s in starts
        ],
        "trials": _trials(mapping(grid.get("trials"))),
        "repeat": repeat_view(manifest),
    }  # fmt: skip


def _names(value: Any) -> list[str]:
    return [str(x) for x in value] if isinstance(value, list) else []


def _score(line: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    return mapping(mapping(line.get("groups")).get(group))


def _group(
    name: str, lines: Sequence[Mapping[str, Any]], grid: Mapping[str, Any], starts: Sequence[str], methods: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    """Curves, ranks and differences of one group of tasks."""
    ranks = [
        {
            "start": r.get("start"), "size": words.count(r.get("size")),
            "cells": [_rank(mapping(r.get("ranks")), method) for method in methods],
        }
        for r in rows(grid.get("ranks"))
        if r.get("group") == name
    ]  # fmt: skip
    sizes = [real(s) or 0.0 for s in grid.get("sizes") or []]
    pairs = [d for d in rows(grid.get("differences")) if d.get("group") == name and real(d.get("size")) == max(sizes)]
    return {
        "name": name,
        "curves": [{"start": s, "charts": _curves(name, s, lines, grid, methods)} for s in starts],
        "methods": list(methods),
        "ranks": ranks,
        "differences": [_difference(d) for d in pairs],
    }


def _rank(ranks: Mapping[str, Any], method: str) -> str:
    """The rank, marked where another method has it too."""
    mine = ranks.get(method)
    return "" if mine is None else f"{mine}{' =' if list(ranks.values()).count(mine) > 1 else ''}"


def _difference(d: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (words.number(real(d.get(k)) or 0.0) for k in ("low", "high"))
    text = f"{d.get('a')} less {d.get('b')}: {words.number(real(d.get('difference')) or 0.0)} ({low} to {high})"
    kind = {"better": "better", "worse": "worse"}.get(str(d.get("verdict")), "quiet")
    return {"start": d.get("start"), "text": f"{text}, {d.get('verdict')}", "kind": kind}


def _curves(
    group: str, start: str, lines: Sequence[Mapping[str, Any]], grid: Mapping[str, Any], methods: Sequence[str]
) -> list[dict[str, str]]:  # fmt: skip
    """A picture a method: its value against the number of pairs, from the start itself on, the others behind it."""
    zero = real(mapping(mapping(grid.get("zero")).get(start)).get(group))
    points: dict[str, list[charts.Point]] = {}
    for method in methods:
        mine = [x for x in lines if (x.get("start"), x.get("method")) == (start, method) and _score(x, group)]
        found = [(real(x.get("size")) or 0.0, real(_score(x, group).get("value"))) for x in mine]
        curve = [(x, math.nan if y is None else y) for x, y in found]
        points[method] = [*([(0.0, zero)] if zero is not None else []), *curve]
    seen = [y for curve in points.values() for _, y in curve if not math.isnan(y)]
    out = []
    for method, curve in points.items():
        others = [charts.Line(m, c, "ghost") for m, c in points.items() if m != method]
        label = f"{group} after {method} from {start}, by pairs"
        drawn = charts.line_chart(
            [*others, charts.Line(method, curve)], label=label, size=SIZE, x_name="pairs",
            y_range=(min(seen), max(seen)) if seen else None,
        )  # fmt: skip
        out.append({"name": method, "svg": drawn})
    return out


def _rows(
    start: str, lines: Sequence[Mapping[str, Any]], grid: Mapping[str, Any], groups: Sequence[str]
) -> list[dict[str, Any]]:  # fmt: skip
    """The start itself, then every method and size."""
    zero = mapping(mapping(grid.get("zero")).get(start))
    out: list[dict[str, Any]] = [
        {
            "method": "the start itself", "size": "", "seeds": "", "why": "",
            "groups": [{"text": _said(zero.get(g)), "interval": ""} for g in groups],
            "figures": [_said(zero.get(key)) for key, *_ in FIGURES],
        }
    ]  # fmt: skip
    for line in (x for x in lines if x.get("start") == start):
        scores = [_score(line, g) for g in groups]
        figures = mapping(line.get("figures"))
        out.append({
            "method": line.get("method"), "size": words.count(line.get("size")), "seeds": line.get("seeds"),
            "why": line.get("why") or "",
            "groups": [
                {"text": _said(s.get("value")), "interval": f"{_said(s.get('low'))} to {_said(s.get('high'))}" if s else ""}
                for s in scores
            ],
            "figures": [_said(figures.get(key)) for key, *_ in FIGURES],
        })  # fmt: skip
    return out


def _said(value: Any) -> str:
    found = real(value)
    return "" if found is None else words.number(found)


def _trials(trials: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was tried for every method from every start, the chosen one marked."""
    out = []
    for start, methods in trials.items():
        for method, told in mapping(methods).items():
            for i, one in enumerate(rows(mapping(told).get("trials"))):
                settings = ", ".join(f"{k} {v}" for k, v in mapping(one.get("settings")).items())
                out.append({
                    "start": start, "method": method, "settings": settings, "score": _said(one.get("score")),
                    "mark": "best" if i == mapping(told).get("chosen") else "",
                })  # fmt: skip
    return out
