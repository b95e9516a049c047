"""The report of a comparison: who is best at what price, who forgot least, and which differences are only noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.report import charts, words
from luthier.report.evidence import (
    Change,
    Measure,
    Spread,
    changes,
    clearly_better,
    mapping,
    pareto_front,
    real,
    rows,
    spread,
    standings,
)
from luthier.report.page import (
    banner,
    gravest_first,
    head_facts,
    read_json,
    read_metrics,
    rejection_banners,
    repeat_view,
    safe_link,
    series,
    state_banners,
    two_sizes,
    unique,
    write_page,
)
from luthier.report.scatter import Dot, scatter

AVERAGE = "average"
WIDE_LOSS = 12.0
SIZES = ((760.0, 430.0), (420.0, 400.0))


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    method: str
    seed: str
    status: str
    run: str
    error: str
    found: tuple[Change, ...]
    cost: Mapping[str, Any]

    @property
    def counts(self) -> bool:
        """Whether its numbers enter the means: finished, and something was measured."""
        return self.status in ("done", "") and any(change.tuned for change in self.found)

    def main(self, task: str, metric: str = "") -> Change | None:
        """The change of a task's metric; of its main metric where none is named."""
        inside = [c for c in self.found if c.task == task and (c.metric == metric if metric else c.main)]
        return inside[0] if inside else None


@dataclass(frozen=True)
class Kept:
    """A retention measure: one task, or the average of several."""

    key: str
    title: str
    metric: str
    is_rate: bool
    higher: bool
    unit: str = ""
    base: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table: a figure for each method, how to show it and which direction is better."""

    key: str
    title: str
    about: str
    name: str
    higher: bool
    show: Callable[[Any], str]
    spreads: Mapping[str, Spread]
    base: str = ""
    quality: bool = False


COSTS: tuple[tuple[str, str, str, str, Callable[[Any], str]], ...] = (
    ("trainable_parameters", "Parameters", "trained", "trained parameters", words.count),
    ("peak_memory_bytes", "Memory", "at its peak", "peak memory", words.size),
    ("train_seconds", "Time", "training", "training time", words.duration),
    ("train_flops", "Compute", "training", "training compute", words.flops),
)
DETAILS: tuple[tuple[str, str, str, str, Callable[[Any], str]], ...] = (
    ("trainable_parameters", "Trained", "head included", "trained parameters", words.count),
    ("head_parameters", "Of them", "in a new head", "parameters of the head", words.count),
    ("stored_bytes", "Stored", "on disk", "stored bytes", words.size),
    ("saved_tensor_bytes", "Graph", "kept for backward", "bytes kept for backward", words.size),
    ("optimizer_bytes", "Optimiser", "state", "bytes of the optimiser", words.size),
    ("forward_flops", "Forward", "compute", "forward compute", words.flops),
    ("backward_flops", "Backward", "compute", "backward compute", words.flops),
    ("forward_seconds", "Forward", "time", "forward time", words.duration),
    ("backward_seconds", "Backward", "time", "backward time", words.duration),
    ("serving_overhead", "Serving", "longer than the base", "serving overhead", lambda v: f"{v:+.0%}"),
    ("merges", "Merges", "into the base", "whether it merges", lambda v: "yes" if v else "no"),
)
"""Costs of a micro-batch, and of what is kept; those of no cell are left out."""
_AXIS = {"peak_memory_bytes": (2**20, "MiB"), "train_seconds": (1, "seconds")}


def write_compare_report(folder: str | Path) -> Path:
    """Read compare.json, and the metrics of the runs that it names, and write report.html; return the path."""
    folder = Path(folder)
    found, problem = read_json(folder / "compare.json")
    return write_page(folder, "compare.html.j2", _view(folder, found, problem))


def _cells(found: Mapping[str, Any]) -> list[Cell]:
    """The cells in the file's order."""
    return [
        Cell(
            method=str(cell.get("method") or "unnamed"),
            seed=words.exact(cell.get("seed")) if real(cell.get("seed")) is not None else str(cell.get("seed") or ""),
            status=str(cell.get("status") or ""),
            run=safe_link(cell.get("run")),
            error=str(cell.get("error") or ""),
            found=tuple(changes(cell.get("results"))),
            cost=mapping(mapping(cell.get("results")).get("cost")),
        )
        for cell in rows(found.get("cells"))
    ]


def _first(cells: Sequence[Cell], task: str, metric: str = "") -> Change | None:
    """The first cell's change of a task, for titles and the base value."""
    known = [change for change in (cell.main(task, metric) for cell in cells) if change is not None]
    return next((c for c in known if c.base is not None), known[0] if known else None)


def _by_method(cells: Sequence[Cell], pick: Callable[[Cell], tuple[float | None, float]]) -> dict[str, Spread]:
    """The spread of a figure for each method in which it was measured."""
    out = {}
    for method in unique([cell.method for cell in cells]):
        picked = [pick(cell) for cell in cells if cell.method == method and cell.counts]
        kept = [(value, items) for value, items in picked if value is not None]
        found = spread([value for value, _ in kept], [items for _, items in kept])
        if found is not None:
            out[method] = found
    return out


def _tuned(change: Change | None) -> tuple[float | None, float]:
    """The tuned value and its half width over the test items."""
    tuned: Measure | None = change.tuned if change else None
    return (None, 0.0) if tuned is None else (tuned.value, tuned.half_width)


def _target(found: Mapping[str, Any], cells: Sequence[Cell]) -> Kept:
    """The measure that methods are compared by, from the file or from the first target task."""
    stated = mapping(found.get("target"))
    task = str(stated.get("task") or "")
    if not task:
        task = next((c.task for cell in cells for c in cell.found if c.group == "target"), "")
    metric = str(stated.get("metric") or "")
    first = _first(cells, task, metric)
    higher = stated.get("higher_is_better")
    if not isinstance(higher, bool):
        higher = first is None or first.higher_is_better is not False
    return Kept(
        key=task,
        title=str(stated.get("title") or (first.title if first else task)),
        metric=metric or (first.metric if first else ""),
        is_rate=first.is_rate if first else False,
        higher=higher,
        unit=first.unit if first else "",
        base=first.base.value if first and first.base else None,
    )


def _retention(found: Mapping[str, Any], cells: Sequence[Cell]) -> list[Kept]:
    """The retention measures, from the file or from the tasks of that group."""
    stated = mapping(found.get("retention")).get("tasks")
    names = [str(name) for name in stated] if isinstance(stated, list) else []
    names = names or unique([c.task for cell in cells for c in cell.found if c.group == "retention"])
    out = []
    for task in names:
        first = _first(cells, task)
        if first is not None:
            base = first.base.value if first.base else None
            better = first.higher_is_better is not False
            out.append(Kept(task, first.title, first.metric, first.is_rate, better, first.unit, base))
    return out


def _average(kept: Sequence[Kept]) -> Kept | None:
    """The average of the retention measures, where all are shares and more is better."""
    if len(kept) < 2 or not all(one.is_rate and one.higher for one in kept):
        return None
    bases = [one.base for one in kept if one.base is not None]
    base = math.fsum(bases) / len(bases) if len(bases) == len(kept) else None
    return Kept(AVERAGE, f"average of {len(kept)} tasks", "", True, True, "", base)


def _kept_spreads(cells: Sequence[Cell], one: Kept, all_: Sequence[Kept]) -> dict[str, Spread]:
    """The spreads of a retention measure; for the average, of each run's average."""
    if one.key != AVERAGE:
        return _by_method(cells, lambda cell: _tuned(cell.main(one.key, one.metric)))

    def pick(cell: Cell) -> tuple[float | None, float]:
        """The average over the tasks, if all were measured."""
        parts = [_tuned(cell.main(task.key, task.metric)) for task in all_]
        values = [value for value, _ in parts if value is not None]
        if len(values) < len(parts):
            return None, 0.0
        return math.fsum(values) / len(parts), math.hypot(*(h for _, h in parts)) / len(parts)

    return _by_method(cells, pick)


def _shower(one: Kept) -> Callable[[Any], str]:
    """How values of a measure are written."""
    return lambda value: words.value_words(value, one.is_rate, one.unit)


def _priced(cell: Cell, key: str) -> tuple[float | None, float]:
    """A cost figure; it has no interval over test items."""
    return real(cell.cost.get(key)), 0.0


def _columns(cells: Sequence[Cell], target: Kept, quality: Mapping[str, Spread], kept: Sequence[Kept]) -> list[Column]:
    """Target, each retention measure, each cost that was measured."""
    out = [_quality_column(target, quality, "target")]
    out += [_quality_column(one, _kept_spreads(cells, one, kept), f"keep-{i}") for i, one in enumerate(kept)]
    for key, title, about, name, show in COSTS:
        found = _by_method(cells, partial(_priced, key=key))
        if found:
            out.append(Column(key, title, about, name, False, show, found))
    return out


def _details(methods: Sequence[str], cells: Sequence[Cell]) -> dict[str, Any]:
    """The prices in full, a row a method; nothing where a comparison tells no more than the table of all methods."""
    found = [
        Column(key, title, about, name, False, show, _by_method(cells, partial(_priced, key=key)))
        for key, title, about, name, show in DETAILS
    ]
    columns = [column for column in found if column.spreads]
    rows_ = [
        {"method": m, "cells": [_entry(column, m, {}) for column in columns]}
        for m in methods
        if any(m in column.spreads for column in columns)
    ]
    return {"columns": columns, "rows": rows_}


def _pilots(found: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out loss of every method at every rate that was tried; the chosen one is marked."""
    told = {m: mapping(p) for m, p in mapping(found.get("pilots")).items() if mapping(mapping(p).get("held_out_loss"))}
    rates = sorted({rate for one in told.values() for rate in one["held_out_loss"]}, key=_rate)
    lines = []
    for method, one in told.items():
        chosen = real(one.get("rate"))
        line = []
        for rate in rates:
            tried, loss = rate in one["held_out_loss"], real(one["held_out_loss"].get(rate))
            text = words.number(loss) if loss is not None else "failed" if tried else ""
            line.append({"text": text, "mark": "best" if loss is not None and _rate(rate) == chosen else ""})
        lines.append({"method": method, "cells": line, "edge": str(one.get("edge") or "")})
    return {"rates": rates, "rows": lines}


def _sweep(found: Mapping[str, Any]) -> dict[str, Any]:
    """What every setting of a sweep scored: a panel for each arm and metric, a line for each rate over the steps."""
    told = mapping(found.get("sweep"))
    lines = [mapping(line) for line in rows(told.get("rows"))]
    panels, settings = [], []
    for arm in unique([str(line.get("arm")) for line in lines]):
        mine = [line for line in lines if str(line.get("arm")) == arm]
        chosen = next((line for line in mine if line.get("chosen")), mine[0])
        about = f"{words.exact(chosen.get('epochs'))} epochs at {words.exact(chosen.get('rate'))}"
        settings.append({"arm": arm, "text": f"{about}, {words.count(chosen.get('steps'))} steps"})
        for metric in mapping(chosen.get("values")):
            curves = [
                charts.Line(
                    f"rate {words.exact(rate)}",
                    [(x, y) for line in mine if line.get("rate") == rate and (x := real(line.get("steps"))) is not None
                     and (y := real(mapping(line.get("values")).get(metric))) is not None],
                    "held" if rate == chosen.get("rate") else "ghost",
                )
                for rate in dict.fromkeys(line.get("rate") for line in mine)
            ]  # fmt: skip
            name = words.metric_words(metric)
            value = words.number(real(mapping(chosen.get("values")).get(metric)) or 0.0)
            svg = charts.line_chart(curves, label=f"{arm}: {name} over steps", x_name="steps")
            panels.append({"name": f"{arm}: {name}", "text": value, "svg": svg})
    return {"task": str(told.get("task") or ""), "panels": [p for p in panels if p["svg"]], "settings": settings}


def _untuned(found: Mapping[str, Any]) -> dict[str, Any]:
    """Arms of which nothing was trained: every metric of every task."""
    arms = [mapping(arm) for arm in rows(found.get("untuned"))]
    if not arms:
        return {"columns": [], "rows": []}
    tasks, measured = mapping(arms[0].get("tasks")), mapping(arms[0].get("measured"))
    columns = [(task, metric) for task in tasks for metric in mapping(measured.get(task))]
    heads = [
        {"title": str(mapping(tasks[task]).get("title") or task), "about": words.metric_words(metric)}
        for task, metric in columns
    ]
    lines = []
    for arm in arms:
        values = [real(mapping(mapping(mapping(arm.get("measured")).get(t)).get(m)).get("value")) for t, m in columns]
        lines.append({"arm": str(arm.get("arm")), "cells": ["" if v is None else words.number(v) for v in values]})
    return {"columns": heads, "rows": lines}


def _style(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each narrow domain and arm: how near its answers are to the domain's where questions are near, and where far."""
    out = []
    for domain, arms in mapping(found.get("style")).items():
        for arm, told in mapping(arms).items():
            values = [real(mapping(told).get(key)) for key in ("follows", "near", "far")]
            cells = [words.NOT_MEASURED if v is None else words.number(v) for v in values]
            out.append({"domain": str(domain), "arm": str(arm), "cells": cells})
    return out


def _rate(text: str) -> float:
    """The number that a rate's name is; names that are none come last."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def _front_of_three(found: Mapping[str, Any]) -> str:
    """Who is on the front of everything that compare.json names, in a sentence."""
    told = mapping(found.get("front"))
    names, of = ([str(x) for x in told.get(k) or ()] for k in ("methods", "of"))
    if not names or not of:
        return ""
    who = f"{words.listed(names)} {'is' if len(names) == 1 else 'are'} on the front"
    return f"Of {words.listed(of)} together, {who}: no other method is as good in all and better in one, by the means."


def _quality_column(one: Kept, found: Mapping[str, Spread], key: str) -> Column:
    """A column of a measured quality."""
    way = "" if one.higher else ", lower is better"
    base = _shower(one)(one.base) if one.base is not None else ""
    return Column(
        key, one.title, words.metric_words(one.metric) + way, one.title, one.higher, _shower(one), found, base, True
    )


def _marks(column: Column) -> dict[str, str]:
    """best and level by method. Nothing is marked in a quality with single seeds, nor where nobody is behind.

    Costs are level within one percent or one standard deviation of the lowest: finer differences decide nothing.
    """
    found = column.spreads
    if len(found) < 2 or (column.quality and max(one.n for one in found.values()) < 2):
        return {}
    sign = 1 if column.higher else -1
    best = max(found, key=lambda name: sign * found[name].mean)
    if not column.quality:
        bound = found[best].mean + max(0.01 * found[best].mean, found[best].sd or 0.0)
        level = [name for name in found if found[name].mean <= bound]
    else:
        level = [name for name in found if not clearly_better(found[best], found[name], column.higher)]
    if len(level) == len(found):
        return {}
    return {**dict.fromkeys(level, "level"), best: "best"}


def _entry(column: Column, method: str, marks: Mapping[str, str]) -> dict[str, str]:
    """One cell of the table."""
    found = column.spreads.get(method)
    if found is None:
        return {"text": words.NOT_MEASURED, "sd": "", "mark": "", "sort": "", "tip": ""}
    each = ", ".join(words.exact(value) for value in found.values)
    sd = words.sd_words(found, column.show) if column.quality else words.relative_sd(found)
    return {
        "text": column.show(found.mean),
        "sd": sd,
        "mark": marks.get(method, ""),
        "sort": repr(found.mean),
        "tip": f"each seed: {each}",
    }


def _table(methods: Sequence[str], cells: Sequence[Cell], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The rows of the table, in order of the target, failed methods last."""
    marks = [_marks(column) for column in columns]
    sign = -1 if columns[0].higher else 1
    ranked = sorted(methods, key=lambda m: sign * columns[0].spreads[m].mean if m in columns[0].spreads else math.inf)
    out = []
    for method in ranked:
        mine = [cell for cell in cells if cell.method == method]
        good = sum(cell.counts for cell in mine)
        out.append(
            {
                "method": method,
                "seeds": f"{good}" if good == len(mine) else f"{good} of {len(mine)}",
                "good": good,
                "short": good < len(mine),
                "gone": "refused" if any(cell.status == "refused" for cell in mine) else "failed",
                "cells": [_entry(column, method, one) for column, one in zip(columns, marks, strict=True)],
            }
        )
    return out


def _spread_tip(name: str, found: Spread, show: Callable[[Any], str]) -> str:
    """'0.97 ± 0.01 (3 seeds)'."""
    return f"{name} {words.mean_sd(found, show)} ({found.n} {'seed' if found.n == 1 else 'seeds'})"


def _bar(found: Spread) -> float:
    """The length of an error bar: one standard deviation over seeds."""
    return found.sd or 0.0


def _cost_plots(columns: Sequence[Column], target: Kept, single: bool) -> list[dict[str, str]]:
    """Quality against each cost, with the front and what it means in words."""
    costs = [column for column in columns if not column.quality and column.key != "train_flops"]
    plots = [_cost_plot(column, columns[0], target, single) for column in costs]
    return [plot for plot in plots if plot is not None]


KINDS = {"clear": "front", "mean": "front-mean", "near": "near", "beaten": "beaten"}


def _cost_plot(column: Column, quality: Column, target: Kept, single: bool) -> dict[str, str] | None:
    """One scatter of target quality against a cost; None where no method has both."""
    names = [name for name in column.spreads if name in quality.spreads]
    if not names:
        return None
    unit, unit_name = _AXIS.get(column.key, (1, ""))
    cost = [column.spreads[name] for name in names]
    good = [quality.spreads[name] for name in names]
    stand = standings(names, [c.mean for c in cost], good, target.higher)
    dots = [
        Dot(
            label=name,
            x=c.mean / unit,
            y=q.mean,
            x_sd=_bar(c) / unit,
            y_sd=_bar(q),
            kind="front" if single and s.kind == "mean" else KINDS[s.kind],
            tip=f"{name}: {_spread_tip(quality.title, q, quality.show)}; {_spread_tip(column.name, c, column.show)}",
        )
        for name, c, q, s in zip(names, cost, good, stand, strict=True)
    ]
    text = words.front_sentence(names, stand, column.name, single=single)
    draw = partial(
        scatter,
        dots,
        label=f"{target.title} against {column.name}. {text}",
        x_name=f"{column.name}, {unit_name}" if unit_name else column.name,
        y_name=_measure_name(target),
        front=pareto_front([(c.mean, q.mean) for c, q in zip(cost, good, strict=True)], high_y=target.higher),
        high_y=target.higher,
        level=None if target.base is None else (target.base, "untuned base"),
    )
    return {
        "key": column.key,
        "name": column.name,
        "svg": two_sizes(lambda size: draw(size=size), *SIZES),
        "text": text,
        "brief": words.front_sentence(names, stand, column.name, single=single, brief=True),
    }


def _measure_name(one: Kept) -> str:
    """'exact match on Reverse', within the room of an axis."""
    text = " on ".join(part for part in (words.metric_words(one.metric) if one.metric else "", one.title) if part)
    return text if len(text) <= 56 else f"{text[:55]}\u2026"


def _kept_plots(cells: Sequence[Cell], target: Column, kept: Sequence[Kept], goal: Kept) -> list[dict[str, str]]:
    """Learned against kept, for the average and for each retention measure."""
    average = _average(kept)
    return [
        plot
        for i, one in enumerate([*([average] if average else []), *kept])
        if (plot := _kept_plot(f"kept-{i}", one, _kept_spreads(cells, one, kept), target, goal)) is not None
    ]


def _kept_plot(key: str, one: Kept, found: Mapping[str, Spread], target: Column, goal: Kept) -> dict[str, str] | None:
    """One scatter of target quality against a retention measure, with the untuned base as a diamond."""
    names = [name for name in found if name in target.spreads]
    if not names:
        return None
    points = [(found[name].mean, target.spreads[name].mean) for name in names]
    front = pareto_front(points, low_x=not one.higher, high_y=goal.higher)
    show = _shower(one)
    dots = [
        Dot(
            name,
            x,
            y,
            _bar(found[name]),
            _bar(target.spreads[name]),
            "front" if i in front else "near",
            f"{name}: {_spread_tip(goal.title, target.spreads[name], target.show)}; "
            f"{_spread_tip(one.title, found[name], show)}",
        )
        for i, (name, (x, y)) in enumerate(zip(names, points, strict=True))
    ]
    if one.base is not None and goal.base is not None:
        dots.append(Dot("untuned base", one.base, goal.base, kind="base"))
    text = _kept_words(one, found, show)
    draw = partial(
        scatter,
        dots,
        label=f"{goal.title} against {one.title}. {text}",
        x_name=f"kept: {_measure_name(one)}",
        y_name=f"learned: {_measure_name(goal)}",
        scale=_plain_scale(one),
        front=front,
        low_x=not one.higher,
        high_y=goal.higher,
    )
    return {"key": key, "name": one.title, "svg": two_sizes(lambda size: draw(size=size), *SIZES), "text": text}


def _plain_scale(one: Kept) -> Callable[[Sequence[float], float, float], charts.Scale]:
    """A linear scale for a retention measure; shares stay within 0 to 1."""

    def scale(values: Sequence[float], start: float, end: float) -> charts.Scale:
        """The scale around the values."""
        found = charts.linear(values, start, end, pad=0.08)
        return charts.Scale(max(found.low, -0.02), min(found.high, 1.03), start, end) if one.is_rate else found

    return scale


def _kept_words(one: Kept, found: Mapping[str, Spread], show: Callable[[Any], str]) -> str:
    """Who kept most, against the base, and who cannot be told apart."""
    sign = 1 if one.higher else -1
    best = max(found, key=lambda name: sign * found[name].mean)
    base = f" (untuned base {show(one.base)})" if one.base is not None else ""
    where = f", on {one.title}" if one.key == AVERAGE else f" of {one.title}"
    head = f"{best} kept most{where}: {words.mean_sd(found[best], show)}{base}"
    level = [name for name in found if name != best and not clearly_better(found[best], found[name], one.higher)]
    if not level or max(one_.n for one_ in found.values()) < 2:
        return f"{head}."
    return f"{head}; {words.listed(level, most=4)} cannot be told apart from it."


def _curves(folder: Path, methods: Sequence[str], cells: Sequence[Cell]) -> dict[str, Any]:
    """A panel for each method: its seeds in front, the first seed of every other method behind."""
    losses: dict[str, list[list[charts.Point]]] = {}
    objectives = set()
    for cell in cells:
        if not cell.run:
            continue
        points = series(read_metrics(folder / _unquoted(cell.run))[0], "loss")
        if any(not math.isnan(y) for _, y in points):
            losses.setdefault(cell.method, []).append(charts.smooth(points))
            manifest, _ = read_json(folder / _unquoted(cell.run) / "run.json")
            objectives.add(str(mapping(manifest.get("method")).get("objective") or ""))
    shared = len(objectives) <= 1
    names = [method for method in methods if method in losses]
    common = _range(losses) if shared and losses else None
    log = common is not None and common[0] > 0 and common[1] / common[0] > WIDE_LOSS
    panels = [_panel(name, losses, common, log=log) for name in names]
    return {"shared": shared, "log": log, "panels": panels}


def _unquoted(link: str) -> str:
    """The path of a link."""
    from urllib.parse import unquote

    return unquote(link)


def _panel(
    name: str, losses: Mapping[str, list[list[charts.Point]]], common: tuple[float, float] | None, *, log: bool
) -> dict[str, str]:
    """The smoothed training loss of one method; with a common range, the other methods behind it."""
    others = [charts.thin(curves[0], 60) for other, curves in losses.items() if other != name] if common else []
    lines = [charts.Line("other", curve, "ghost") for curve in others]
    lines += [charts.Line(name, charts.thin(curve, 200)) for curve in losses[name]]
    last = spread([next((y for _, y in reversed(curve) if not math.isnan(y)), None) for curve in losses[name]])
    text = words.mean_sd(last, words.number) if last else words.NOT_MEASURED
    label = f"Training loss of {name}, {text} at the end"
    drawn = charts.line_chart(lines, label=label, size=(320, 190), ends=False, y_range=common, log=log)
    return {"name": name, "svg": drawn, "text": text}


def _range(losses: Mapping[str, list[list[charts.Point]]]) -> tuple[float, float]:
    """The common range of all losses."""
    seen = [y for curves in losses.values() for curve in curves for _, y in curve if not math.isnan(y)]
    return min(seen), max(seen)


def _grid(folder: Path, methods: Sequence[str], cells: Sequence[Cell], target: Kept) -> dict[str, Any]:
    """Every single run: its target value, linked to its own report, or what went wrong."""
    seeds = unique([cell.seed for cell in cells])
    show = _shower(target)
    lines: list[dict[str, Any]] = []
    for method in methods:
        line = []
        for seed in seeds:
            cell = next((c for c in cells if c.method == method and c.seed == seed), None)
            line.append(_grid_entry(folder, cell, target, show))
        lines.append({"method": method, "cells": line})
    linked = any(entry["link"] for line in lines for entry in line["cells"])
    return {"seeds": seeds, "rows": lines, "linked": linked}


def _grid_entry(folder: Path, cell: Cell | None, target: Kept, show: Callable[[Any], str]) -> dict[str, str]:
    """One run in the grid; linked only where its report exists."""
    if cell is None:
        return {"text": "not run", "kind": "open", "link": ""}
    link = f"{cell.run}/report.html" if cell.run and (folder / _unquoted(cell.run) / "report.html").is_file() else ""
    if not cell.counts:
        return {"text": cell.status if cell.status not in ("done", "") else "no results", "kind": "bad", "link": link}
    return {"text": show(_tuned(cell.main(target.key, target.metric))[0]), "kind": "", "link": link}


def _failures(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The cells that do not count, with what they said."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for c in cells:
        if not c.counts:
            same.setdefault((c.method, c.status or "no results", c.error), []).append(c.seed)
    return [
        {"method": m, "seeds": ("seeds " if len(s) > 1 else "seed ") + words.listed(s), "status": status, "error": why}
        for (m, status, why), s in same.items()
    ]


def _verdict(columns: Sequence[Column], target: Kept, single: bool) -> str:
    """The opening sentence."""
    quality = columns[0]
    if not quality.spreads:
        return "No run of this comparison has finished with a result, so there is nothing to compare."
    sign = 1 if target.higher else -1
    best = max(quality.spreads, key=lambda name: sign * quality.spreads[name].mean)
    level = [
        name
        for name in quality.spreads
        if name != best and not clearly_better(quality.spreads[best], quality.spreads[name], target.higher)
    ]
    measure = f"{words.metric_words(target.metric)} on {target.title}"
    return words.leader_sentence(dict(quality.spreads), measure, target.higher, level, quality.show)


def _banners(found: Mapping[str, Any], problem: str, cells: Sequence[Cell], single: bool) -> list[dict[str, str]]:
    """Warnings, the gravest first."""
    manifest = {"status": found.get("status"), **mapping(found.get("manifest"))}
    out = state_banners(manifest, "comparison")
    if problem:
        out.append(banner("bad", "No comparison.", f"{problem}."))
    failed = sum(not cell.counts and cell.status != "refused" for cell in cells)
    if failed:
        left = "1 run has no usable result and is" if failed == 1 else f"{failed} runs have no usable result and are"
        out.append(banner("warn", "Incomplete.", f"{left} left out of the means."))
    edges = [f"{m} ({p['rate']:g}, {p['edge']})" for m, p in mapping(found.get("pilots")).items()
             if mapping(p).get("edge") and real(mapping(p).get("rate")) is not None]  # fmt: skip
    if edges:
        text = f"A wider grid may do better for {words.listed(edges, most=8)}."
        out.append(banner("warn", "Best rate at the edge of the grid.", text))
    if single and cells:
        text = "The spread between seeds is unknown, so no difference is claimed. Run at least three seeds."
        out.append(banner("warn", "One seed.", text))
    return gravest_first(out + rejection_banners(manifest))


def _size(methods: Sequence[str], seeds: Sequence[str]) -> str:
    """'5 methods, 3 seeds (1, 2 and 3)'."""
    many = f"{len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    if len(seeds) < 2:
        return f"{many}, seed {seeds[0]}" if seeds else many
    return f"{many}, {len(seeds)} seeds ({words.listed(seeds, most=8)})"


def _view(folder: Path, found: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    cells = _cells(found)
    stated = found.get("methods")
    methods = unique([*([str(m) for m in stated] if isinstance(stated, list) else []), *(c.method for c in cells)])
    target, kept = _target(found, cells), _retention(found, cells)
    quality = _by_method(cells, lambda cell: _tuned(cell.main(target.key, target.metric)))
    columns = _columns(cells, target, quality, kept)
    single = max((one.n for one in quality.values()), default=0) < 2
    manifest = {"status": found.get("status"), "recipe": found.get("recipe"), "seeds": found.get("seeds")}
    manifest = {**manifest, **{k: v for k, v in mapping(found.get("manifest")).items() if v is not None}}
    table = _table(methods, cells, columns)
    order = [row["method"] for row in table]
    plots, kept_plots = _cost_plots(columns, target, single), _kept_plots(cells, columns[0], kept, target)
    return {
        "title": str(found.get("name") or "Unnamed comparison"),
        "head": head_facts(manifest),
        "count": _size(methods, unique([cell.seed for cell in cells])),
        "banners": _banners(found, problem, cells, single),
        "verdict": _verdict(columns, target, single),
        "front": " ".join([*(one["brief"] for one in plots[:1]), *(one["text"] for one in kept_plots[:1])]),
        "columns": [{"title": c.title, "about": c.about, "base": c.base, "quality": c.quality} for c in columns],
        "has_base": any(column.base for column in columns),
        "rows": table,
        "single": single,
        "costs": plots,
        "kept": kept_plots,
        "front_of_three": _front_of_three(found),
        "audit": words.first_up(str(mapping(found.get("audit")).get("text") or "")),
        "details": _details(order, cells),
        "pilots": _pilots(found),
        "sweep": _sweep(found),
        "untuned": _untuned(found),
        "leaks": _style(found),
        "curves": _curves(folder, order, cells),
        "grid": _grid(folder, order, cells, target),
        "measure": _measure_name(target),
        "failures": _failures(cells),
        "repeat": repeat_view(manifest),
    }
