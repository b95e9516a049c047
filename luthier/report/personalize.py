"""The report of a personalisation: who gains most, at what price, what a project's delta does to other projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.report import words
from luthier.report.evidence import mapping, pareto_front, real, rows
from luthier.report.page import (
    banner,
    gravest_first,
    head_facts,
    read_json,
    repeat_view,
    safe_link,
    state_banners,
    two_sizes,
    unique,
    write_page,
)
from luthier.report.scatter import Dot, scatter

SIZES = ((760.0, 400.0), (420.0, 380.0))
SURE = 0.05
"""A comparison with a larger p claims nothing."""
COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("trainable_parameters", "Trained parameters", words.count),
    ("stored_bytes", "Stored for a project", words.size),
    ("seconds_to_best", "Training to the best step", words.duration),
    ("flops_to_best", "Compute to the best step", words.flops),
    ("step_flops", "Compute of a step", words.flops),
    ("best_step", "Best step", words.number),
    ("gain", "Gain", words.number),
    ("gain_per_pflop", "Gain for a PFLOP", words.number),
    ("flops_to_best_step", "and more than the next cheaper", lambda v: _per(v, 1e15)),
    ("gain_per_mib", "Gain for a MiB", words.number),
    ("stored_bytes_step", "and more than the next smaller", lambda v: _per(v, 2.0**20)),
    ("own_ratio", "Perplexity left, own rows", words.number),
    ("other_ratio", "Perplexity left, other projects", words.number),
)
PLOTS = (
    ("stored_bytes", "stored for a project", 2.0**20, "MiB"),
    ("flops_to_best", "compute to the best step", 1e12, "TFLOP"),
)


def write_personalize_report(folder: str | Path) -> Path:
    """Read personalize.json and write report.html; return the path."""
    folder = Path(folder)
    found, problem = read_json(folder / "personalize.json")
    return write_page(folder, "personalize.html.j2", _view(folder, found, problem))


def _view(folder: Path, found: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    manifest = {
        "status": found.get("status"), "kind": "compare", "recipe": found.get("recipe"), **mapping(found.get("manifest")),
    }  # fmt: skip
    schemes, projects = _names(found.get("schemes")), list(mapping(found.get("projects")))
    table, target = rows(found.get("table")), mapping(found.get("target"))
    costs = {str(row.get("scheme")): row for row in rows(found.get("costs"))}
    banners = state_banners(manifest, "personalisation")
    if problem:
        banners.append(banner("bad", "No personalisation.", f"{problem}."))
    if 0 < len(projects) < 6:
        least = 2.0 ** (1 - len(projects))
        text = f"Wilcoxon's test cannot give a p below {words.number(least)} with {len(projects)}."
        banners.append(banner("warn", "Few projects.", f"{text} At least six are needed to claim a difference."))
    failed = [c for c in rows(found.get("cells")) if c.get("status") != "done"]
    if failed:
        names = words.listed([f"{c.get('project')} by {c.get('scheme')}" for c in failed], most=3)
        banners.append(
            banner("warn", "Incomplete.", f"Without a result: {names}. A scheme counts where all projects ended.")
        )
    return {
        "title": str(found.get("name") or folder.name),
        "head": [*head_facts(manifest), ("Projects", str(len(projects))), ("Schemes", str(len(schemes)))],
        "banners": gravest_first(banners),
        "verdict": _verdict(schemes, table, target, rows(found.get("pairs")), len(projects)),
        "price": _price(mapping(found.get("chosen")), costs),
        "schemes": schemes,
        "groups": _groups(schemes, table, target),
        "plots": _plots(schemes, table, target, costs),
        "matrices": _matrices(schemes, projects, mapping(found.get("matrix"))),
        "sheet": _sheet(schemes, costs),
        "gain": _gain_words(target),
        "grid": _grid(folder, schemes, projects, rows(found.get("cells"))),
        "projects": _projects(mapping(found.get("projects"))),
        "repeat": repeat_view(manifest),
    }  # fmt: skip


def _names(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []


def _per(value: Any, unit: float) -> str:
    found = real(value)
    return words.NOT_MEASURED if found is None else words.number(found * unit)


def _mean(value: Any) -> float | None:
    known = [v for v in map(real, value) if v is not None] if isinstance(value, list) else []
    return sum(known) / len(known) if known else None


def _target_rows(table: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    key = (target.get("task"), target.get("metric"))
    return {str(r.get("scheme")): r for r in table if (r.get("task"), r.get("metric")) == key}


def _gain_words(target: Mapping[str, Any]) -> str:
    way = "more of" if target.get("higher_is_better") else "less of"
    return f"Gain is {way} {words.metric_words(str(target.get('metric') or ''))} than the base has, averaged over projects."


def _verdict(
    schemes: Sequence[str], table: Sequence[Mapping[str, Any]], target: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]], n: int,
) -> str:  # fmt: skip
    """Who gains most, how surely, and who cannot be told apart from it."""
    found = {s: r for s, r in _target_rows(table, target).items() if s in schemes and _mean(r.get("tuned")) is not None}
    if not found:
        return "No scheme has ended for every project, so there is nothing to compare."
    up = bool(target.get("higher_is_better"))
    best = sorted(found, key=lambda s: (-1 if up else 1) * (_mean(found[s].get("tuned")) or 0.0))[0]
    row = found[best]
    name = words.metric_words(str(target.get("metric") or ""))
    base, tuned = (words.number(_mean(row.get(side))) for side in ("base", "tuned"))
    head = (
        f"{best} has the {'highest' if up else 'lowest'} {name}: {tuned} instead of {base}, averaged over {n} projects"
    )
    p = real(row.get("p"))
    sure = f" (better than the base with p {words.p_words(p)})" if row.get("verdict") == "better" else ""
    level = []
    for pair in pairs:
        names = [str(pair.get("a")), str(pair.get("b"))]
        unsure = (real(pair.get("p")) or 0.0) > SURE
        if best in names and unsure:
            level.append(next(s for s in names if s != best))
    if len(level) == len(found) - 1 and level:
        return f"{head}{sure}; no other scheme can be told apart from it over these projects."
    return f"{head}{sure}" + (f"; {words.listed(level)} cannot be told apart from it." if level else ".")


def _price(chosen: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """What validation rows choose, and what it takes."""
    scheme = str(chosen.get("scheme") or "")
    row = costs.get(scheme)
    if not row:
        return ""
    kept = f"{words.size(row.get('stored_bytes'))} a project and {words.flops(row.get('flops_to_best'))} of training"
    return f"Validation rows choose {scheme}: {kept}. This folder loads as {chosen.get('project')} by {scheme}."


def _groups(
    schemes: Sequence[str], table: Sequence[Mapping[str, Any]], target: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The comparison: a row a metric, a column a scheme."""
    out = []
    for task in unique([str(r.get("task")) for r in table]):
        mine = [r for r in table if str(r.get("task")) == task]
        lines = []
        for metric in unique([str(r.get("metric")) for r in mine]):
            by = {str(r.get("scheme")): r for r in mine if str(r.get("metric")) == metric}
            first = next(iter(by.values()))
            way = "" if first.get("higher_is_better") else ", lower is better"
            lines.append({
                "metric": words.metric_words(metric) + way,
                "main": (task, metric) == (target.get("task"), target.get("metric")),
                "base": words.number(_mean(first.get("base"))),
                "cells": [_cell(by.get(s)) for s in schemes],
            })  # fmt: skip
        out.append({"title": task.replace("_", " "), "rows": lines})
    return out


def _cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    """One scheme's mean, and how surely it differs from the base."""
    row = row or {}
    p, effect = real(row.get("p")), real(row.get("effect"))
    each = ", ".join(words.number(v) for v in row.get("tuned") or [])
    kind = str(row.get("verdict") or "open")
    sign = {"better": "▲", "worse": "▼"}.get(kind, "")
    sure = f"p {words.p_words(p)}, effect {words.signed(effect)}" if p is not None and effect is not None else ""
    return {
        "text": words.number(_mean(row.get("tuned"))),
        "kind": kind,
        "sign": sign,
        "sure": sure,
        "tip": f"by project: {each}",
    }


def _plots(
    schemes: Sequence[str], table: Sequence[Mapping[str, Any]], target: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, str]]:  # fmt: skip
    """The target against each cost, with the front and the base as a line."""
    found = _target_rows(table, target)
    up = bool(target.get("higher_is_better"))
    out = []
    for key, name, unit, unit_name in PLOTS:
        points = [
            (s, real(mapping(costs.get(s)).get(key)), _mean(mapping(found.get(s)).get("tuned"))) for s in schemes
        ]  # fmt: skip
        known = [(s, x / unit, y) for s, x, y in points if x and y is not None]
        if not known:
            continue
        front = pareto_front([(x, y) for _, x, y in known], high_y=up)
        dots = [
            Dot(
                s,
                x,
                y,
                kind="front" if i in front else "near",
                tip=f"{s}: {words.number(y)}; {words.number(x)} {unit_name}",
            )
            for i, (s, x, y) in enumerate(known)
        ]
        base = _mean(next(iter(found.values())).get("base")) if found else None
        text = f"On the front: {words.listed([known[i][0] for i in front])}."
        metric = words.metric_words(str(target.get("metric") or ""))
        draw = partial(
            scatter, dots, label=f"{metric} against {name}. {text}", x_name=f"{name}, {unit_name}",
            y_name=f"{metric}, mean over projects", front=front, high_y=up,
            level=None if base is None else (base, "base"),
        )  # fmt: skip
        out.append({"svg": _drawn(draw), "text": text, "name": name})
    return out


def _drawn(draw: Callable[..., str]) -> str:
    return two_sizes(lambda size: draw(size=size), *SIZES)


def _matrices(schemes: Sequence[str], projects: Sequence[str], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table a scheme: whose delta, on whose rows."""
    out = []
    for scheme in schemes:
        lines = found.get(scheme)
        if not isinstance(lines, list):
            continue
        best = sum(
            min(range(len(lines)), key=lambda i: real(lines[i][j]) or float("inf")) == j for j in range(len(projects))
        )  # fmt: skip
        out.append({
            "scheme": scheme,
            "text": f"The own delta is the best one on the rows of {best} of {len(projects)} projects.",
            "rows": [
                {"name": p, "cells": [_ratio(value, i == j) for j, value in enumerate(line)]}
                for i, (p, line) in enumerate(zip(projects, lines, strict=False))
            ],
        })  # fmt: skip
    return out


def _ratio(value: Any, own: bool) -> dict[str, Any]:
    """A ratio of perplexities; shaded by how far it is from 1, full at a half and at double."""
    found = real(value)
    if found is None or found <= 0:
        return {"text": words.NOT_MEASURED, "kind": "open", "depth": 0, "own": own}
    depth = min(100, round(100 * (1 / found - 1 if found < 1 else found - 1)))
    kind = "better" if found < 1 else "worse"
    return {"text": f"{found:.2f}" if found < 100 else words.number(found), "kind": kind, "depth": depth, "own": own}


def _sheet(schemes: Sequence[str], costs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cost sheet: a row a figure, a column a scheme."""
    return [
        {"name": name, "cells": [_figure(mapping(costs.get(s)).get(key), show) for s in schemes]} for key, name, show in COSTS
    ]  # fmt: skip


def _figure(value: Any, show: Callable[[Any], str]) -> dict[str, str]:
    found = real(value)
    return {"text": "–" if found is None else show(found), "tip": "" if found is None else words.exact(found)}


def _grid(
    folder: Path, schemes: Sequence[str], projects: Sequence[str], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every single run, linked to its own report."""
    out = []
    for project in projects:
        line = []
        for scheme in schemes:
            mine = [c for c in cells if (c.get("project"), c.get("scheme")) == (project, scheme)]
            line.append([_run(folder, c) for c in mine])
        out.append({"project": project, "cells": line})
    return out


def _run(folder: Path, cell: Mapping[str, Any]) -> dict[str, str]:
    from urllib.parse import unquote

    link = safe_link(cell.get("run"))
    there = link and (folder / unquote(link) / "report.html").is_file()
    done = cell.get("status") == "done"
    text = words.number(cell.get("target")) if done else str(cell.get("status") or "not run")
    return {
        "text": text, "link": f"{link}/report.html" if there else "", "kind": "" if done else "bad",
        "tip": str(cell.get("error") or ""),
    }  # fmt: skip


def _projects(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows and files of every part of every project."""
    out = []
    for name, about in found.items():
        about, files = mapping(about), mapping(mapping(about).get("files"))
        parts = [
            f"{words.exact(about.get(part))} ({words.exact(files.get(part))})"
            for part in ("train", "validation", "test")
        ]
        link = safe_link(f"projects/{about.get('folder')}/report.html")
        out.append({"name": name, "parts": parts, "duplicates": words.exact(about.get("duplicates")), "link": link})
    return out
