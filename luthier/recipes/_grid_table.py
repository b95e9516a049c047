"""The table of an alignment grid: values with intervals, differences on the same items, ranks with ties.

value(cell)       mean over seeds and over a group's tasks of the main metric        one that is to be low counts negative
draws(cell)       the same under R draws of the items, the same draws for every cell  (R,)
interval          the middle 95 % of draws(cell);  of a difference: of draws(a) - draws(b), as items are paired
rank(a)           1 + number of b with an interval of value(b) - value(a) above 0
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation._compare import Measured, Task
from luthier.evaluation._statistics import counts, value

Groups = Mapping[str, Sequence[Task]]
FIGURES = {
    "logp_chosen": ("held_out", "logp_best"), "logp_rejected": ("held_out", "logp_worst"), "ended": ("stopping", "stopped"),
    "length": ("stopping", "length"),
}  # fmt: skip
"""What is told of every cell: name -> task and metric."""


def signed(entry: Mapping[str, Any]) -> float:
    """A metric's value, negative where it is to be low."""
    return float(entry["value"]) * (1 if entry["higher_is_better"] else -1)


@dataclass
class Score:
    """Of a group in a cell: the value, and what it is under each draw of the items (R,)."""

    value: float
    draws: NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float]:
        return middle(self.draws)


def middle(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@dataclass
class Line:
    """One method from one start on one number of pairs, over its seeds. `why`: it has no figures."""

    start: str
    method: str
    size: int
    seeds: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    why: str = ""

    def told(self) -> dict[str, Any]:
        """As plain values."""
        own = {k: v for k, v in vars(self).items() if k != "scores"}
        groups = {
            g: dict(zip(("value", "low", "high"), (s.value, *s.interval), strict=True)) for g, s in self.scores.items()
        }
        return {**own, "groups": groups}


@dataclass
class Table:
    """All lines; `zero`: start -> group or figure -> what the start itself measures."""

    lines: list[Line]
    zero: dict[str, dict[str, float]]
    groups: list[str]

    def told(self) -> dict[str, Any]:
        return {
            "lines": [line.told() for line in self.lines], "zero": self.zero, "groups": self.groups,
            "ranks": self.ranks(), "differences": self.differences(), "findings": self.findings(),
        }  # fmt: skip

    def rivals(self) -> list[tuple[str, int, str, list[Line]]]:
        """(start, size, group, lines of the methods there)."""
        at = list(dict.fromkeys((line.start, line.size) for line in self.lines))
        return [
            (start, size, group, [x for x in self.lines if (x.start, x.size) == (start, size) and group in x.scores])
            for start, size in at
            for group in self.groups
        ]

    def ranks(self) -> list[dict[str, Any]]:
        """Rank of each method by start, size and group."""
        return [
            {
                "start": start, "size": size, "group": group,
                "ranks": {a.method: 1 + sum(difference(b, a, group)[1] > 0 for b in lines) for a in lines},
            }
            for start, size, group, lines in self.rivals()
        ]  # fmt: skip

    def differences(self) -> list[dict[str, Any]]:
        """Every two methods on the same items: the difference of the first and the second, and what it says."""
        out = []
        for start, size, group, lines in self.rivals():
            for a, b in itertools.combinations(lines, 2):
                d, low, high = difference(a, b, group)
                out.append({
                    "start": start, "size": size, "group": group, "a": a.method, "b": b.method, "difference": d, "low": low,
                    "high": high, "verdict": "better" if low > 0 else "worse" if high < 0 else "no difference",
                })  # fmt: skip
        return out

    def findings(self) -> list[str]:
        """Who is best at the largest size, a sentence for each start and group."""
        largest, out = max(line.size for line in self.lines), []
        for told in self.ranks():
            if told["size"] != largest or not told["ranks"]:
                continue
            first = [m for m, rank in told["ranks"].items() if rank == 1]
            text = f"{first[0]} is best" if len(first) == 1 else f"no difference between the best, {', '.join(first)}"
            if len(first) == len(told["ranks"]):
                text = "no difference between the methods"
            out.append(f"{told['start']}, {told['group']}: {text}")
        return out


def difference(a: Line, b: Line, group: str) -> tuple[float, float, float]:
    """value(a) - value(b) and its interval."""
    one, two = a.scores[group], b.scores[group]
    return one.value - two.value, *middle(one.draws - two.draws)


# ------------------------------------------------------------------------------------------------------- lines


def line(
    start: str, method: str, size: int, done: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], place: Path,
    groups: Groups, resamples: int,
) -> Line:  # fmt: skip
    """Of the cells that are done, one a seed; their runs are in `place`."""
    if not done:
        failed = [c for c in cells if c["method"] == f"{method}-{size}"]
        return Line(start, method, size, why=f"{failed[0]['status']}: {failed[0]['error']}" if failed else "not run")
    measured = [Measured.load(place / c["run"] / "tuned.json", itertools.chain(*groups.values())) for c in done]
    scores = {group: score(measured, tasks, resamples) for group, tasks in groups.items()}
    found = [figures(c["results"], place / c["run"]) for c in done]
    return Line(start, method, size, len(done), scores, {k: statistics.fmean(f[k] for f in found) for k in found[0]})


def score(measured: Sequence[Measured], tasks: Sequence[Task], resamples: int) -> Score:
    """Of a group, over seeds. The draws depend on the task's place in the group and its number of items alone."""
    values, draws = [], []
    for at, one in enumerate(tasks):
        for m in measured:
            answers = m.answers[one.name]
            known = one.scorer.table(answers)
            metric = one.metric or next(iter(known))
            aggregate, sign = one.scorer.aggregate(metric, answers), 1 if known[metric] else -1
            values.append(sign * value(aggregate, answers.stats))
            weights = counts(len(answers), resamples, at, answers.clusters)
            draws.append(sign * np.concatenate([aggregate(answers.stats, w) for w in weights]))
    return Score(statistics.fmean(values), np.mean(draws, 0))


def figures(results: Mapping[str, Any], run: Path) -> dict[str, float]:
    """Of one run: FIGURES, how long it was trained, and its training loss at the first and the last look."""
    out = {name: float(results["tuned"][task][metric]["value"]) for name, (task, metric) in FIGURES.items()}
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    looks = [row for row in log if "loss" in row]
    return out | {
        "steps": float(looks[-1]["step"]), "epochs": float(looks[-1]["epoch"]),
        "first_loss": float(looks[0]["loss"]), "last_loss": float(looks[-1]["loss"]),
    }  # fmt: skip


def zero(cells: Sequence[Mapping[str, Any]], groups: Groups) -> dict[str, float]:
    """What the start itself measures, by group and figure; it is the same for all cells."""
    base = next((c["results"]["base"] for c in cells if c["status"] == "done"), None)
    if base is None:
        return {}
    out = {}
    for group, tasks in groups.items():
        out[group] = statistics.fmean(signed(base[t.name][t.metric or next(iter(base[t.name]))]) for t in tasks)
    return out | {name: float(base[task][metric]["value"]) for name, (task, metric) in FIGURES.items()}


# ----------------------------------------------------------------------------------------------------- written


def as_csv(found: Table) -> str:
    """One row a line: values with their bounds and ranks by group, then the figures."""
    ranks = {(r["start"], r["size"], r["group"]): r["ranks"] for r in found.ranks()}
    names = list(next((line.figures for line in found.lines if line.figures), {}))
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    ends = ("", " low", " high", " rank")
    out.writerow(["start", "method", "pairs", "seeds", *(f"{g}{e}" for g in found.groups for e in ends), *names, "why"])
    for x in found.lines:
        cells: list[Any] = []
        for g in found.groups:
            s = x.scores.get(g)
            cells += [s.value, *s.interval, ranks[x.start, x.size, g][x.method]] if s else ["", "", "", ""]
        out.writerow([x.start, x.method, x.size, x.seeds, *cells, *(x.figures.get(n, "") for n in names), x.why])
    return file.getvalue()


def as_text(found: Table) -> str:
    """For a terminal."""
    ranks = {(r["start"], r["size"], r["group"]): r["ranks"] for r in found.ranks()}
    body = [["start", "method", "pairs", *found.groups, "ended", "length"]]
    for start in found.zero:
        base = found.zero[start]
        if base:
            body.append([start, "(start)", "0", *(f"{base[g]:.3f}" for g in found.groups), f"{base['ended']:.2f}",
                         f"{base['length']:.1f}"])  # fmt: skip
        for x in (x for x in found.lines if x.start == start):
            if x.why:
                body.append([start, x.method, str(x.size), x.why, *[""] * (len(found.groups) + 1)])
                continue
            cells = [f"{x.scores[g].value:.3f} #{ranks[x.start, x.size, g][x.method]}" for g in found.groups]
            body.append(
                [start, x.method, str(x.size), *cells, f"{x.figures['ended']:.2f}", f"{x.figures['length']:.1f}"]
            )
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in body)
