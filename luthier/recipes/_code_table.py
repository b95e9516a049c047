"""The table of a study of code models, and what it says about the questions that the study asks.

A line is one method on one model, tested on one set: tuned on that set or on all together, or untuned with examples in its
prompt. Two lines are told apart by the rule of every comparison (report/evidence.py): seeds and test items together.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.recipes._summary import Cell
from luthier.report.evidence import Spread, clearly_better, measure
from luthier.report.words import mean_sd, number

TUNED, JOINT, ZERO, DRAWN, NEAREST = "tuned", "tuned on all sets", "no examples", "drawn examples", "nearest examples"
KINDS = (TUNED, JOINT, ZERO, DRAWN, NEAREST)
COSTS = (
    "base_parameters",
    "trainable_parameters",
    "peak_memory_bytes",
    "train_seconds",
    "stored_bytes",
    "prompt_tokens",
)
Metric = tuple[str, str]
"""Task and metric."""


@dataclass(frozen=True)
class Line:
    """`kind` is one of KINDS; `validation` the best loss on validation rows, mean over seeds; `why` it has no figures."""

    set: str
    model: str
    method: str
    kind: str
    seeds: int = 0
    metrics: dict[Metric, Spread] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    rate: float | None = None
    validation: float | None = None
    why: str = ""

    def spread(self, metric: Metric) -> Spread:
        """Of a line in which nothing is drawn, every seed would say the same."""
        found = self.metrics[metric]
        return Spread(found.values * 2, found.items) if self.kind in (ZERO, NEAREST) else found

    @property
    def label(self) -> str:
        return f"{self.method}{' on all sets' if self.kind == JOINT else ''} ({self.model})"

    def told(self) -> dict[str, Any]:
        """As plain values."""
        figures = {
            f"{task}.{metric}": {"mean": s.mean, "sd": s.sd, "items": s.items, "values": list(s.values)}
            for (task, metric), s in self.metrics.items()
        }
        own = {k: v for k, v in vars(self).items() if k not in ("metrics", "cost")}
        share = _share(self.cost.get("trainable_parameters"), self.cost.get("base_parameters"))
        return {**own, **{k: self.cost.get(k) for k in COSTS}, "trained_share": share, "metrics": figures}


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


# ------------------------------------------------------------------------------------------------- lines


def tuned(
    name: str, model: str, method: str, kind: str, cells: Sequence[Cell], tasks: Mapping[str, str], rate: float | None
) -> Line:  # fmt: skip
    """A line of runs, one a seed. `tasks` are those about this set: name in the results -> name in the table."""
    done = [c for c in cells if c.status == "done"]
    if not done:
        why = f"{cells[0].status}: {cells[0].error}" if cells else "not run"
        return Line(name, model, method, kind, why=why)
    found = [{tasks[t]: m for t, m in c.results["tuned"].items() if t in tasks} for c in done]
    cost = {k: _mean([c.cost.get(k) for c in done]) for k in COSTS}
    return Line(name, model, method, kind, len(done), spreads(found), cost, rate, _mean([c.validation for c in done]))


def asked(name: str, model: str, method: str, kind: str, found: Sequence[Mapping[str, Any]]) -> Line:
    """A line of an untuned model that was asked once (whatever the seed), or once for each draw of examples."""
    cost: dict[str, float | None] = {
        "trainable_parameters": 0.0,
        "stored_bytes": 0.0,
        "base_parameters": found[0]["parameters"],
    }
    cost["prompt_tokens"] = _mean([f["prompt_tokens"] for f in found])
    return Line(name, model, method, kind, len(found), spreads([f["tasks"] for f in found]), cost)


def spreads(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[Metric, Spread]:
    """Every metric over seeds, with the mean half width of its intervals over test items."""
    out = {}
    for task, metrics in found[0].items():
        for metric in metrics:
            entries = [e for f in found if (e := measure(f[task][metric])) is not None]
            if entries:
                items = statistics.fmean(e.half_width for e in entries)
                out[task, metric] = Spread(tuple(e.value for e in entries), items)
    return out


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


# ------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Question:
    """What is asked of pairs of lines of one set."""

    text: str
    pairs: list[tuple[Line, Line]]

    def told(self, metric: Metric, up: bool) -> dict[str, Any]:
        return {"question": self.text, "answers": [_answer(a, b, metric, up) for a, b in self.pairs]}


def _answer(a: Line, b: Line, metric: Metric, up: bool) -> dict[str, Any]:
    one, two = a.spread(metric), b.spread(metric)
    difference = one.mean - two.mean
    verdict = "not told apart"
    if clearly_better(one, two, up):
        verdict = "better"
    elif clearly_better(two, one, up):
        verdict = "worse"
    elif min(one.n, two.n) < 2:
        verdict = "one seed: no claim"
    text = f"{a.set}: {a.label} {_words(a, metric)}, {b.label} {_words(b, metric)}: {verdict}"
    return {"set": a.set, "a": a.label, "b": b.label, "difference": difference, "verdict": verdict, "text": text}


def _words(line: Line, metric: Metric) -> str:
    return mean_sd(line.metrics[metric], number)


def questions(lines: Sequence[Line], metric: Metric, up: bool, quantised: Mapping[str, str]) -> list[dict[str, Any]]:
    """The study's questions. `quantised` names the model that each rounded one was made of.

    The tuned line that speaks for a model is the one with the lowest validation loss; for prompts it is the best on the test
    rows, which favours them.
    """
    known = [line for line in lines if metric in line.metrics]
    sets = list(dict.fromkeys(line.set for line in known))
    pairs: dict[str, list[tuple[Line, Line]]] = {q: [] for q in ("size", "prompts", "nearest", "joint", "quantised")}
    for name in sets:
        here = [line for line in known if line.set == name]
        plain = [line for line in here if line.model not in quantised]
        own = [line for line in plain if line.kind == TUNED]
        if pair := _sizes(own):
            pairs["size"].append(pair)
        for model in dict.fromkeys(line.model for line in own):
            small = _lowest_loss(line for line in own if line.model == model and line.method != "full")
            for key, kinds in (("prompts", (ZERO, DRAWN)), ("nearest", (NEAREST,))):
                best = _best((line for line in plain if line.model == model and line.kind in kinds), metric, up)
                if small and best:
                    pairs[key].append((small, best))
        pairs["joint"] += _matched(here, (line for line in here if line.kind == JOINT), TUNED)
        rounded = (line for line in here if line.model in quantised and line.kind == TUNED)
        pairs["quantised"] += _matched(here, rounded, TUNED, quantised)
    texts = {
        "size": "The largest model with a small part tuned, against the smallest tuned whole",
        "prompts": "Tuning a small part, against a prompt without or with drawn examples",
        "nearest": "Tuning a small part, against the nearest examples in the prompt",
        "joint": "One training on all sets together, against one for each",
        "quantised": "A quantised base, against the same base as it is",
    }
    return [Question(texts[key], found).told(metric, up) for key, found in pairs.items()]


def _sizes(own: Sequence[Line]) -> tuple[Line, Line] | None:
    """(largest model with the best of its small methods, smallest model tuned whole), where these are two models."""
    whole = min((line for line in own if line.method == "full"), key=_size, default=None)
    largest = max((_size(line) for line in own if line.method != "full"), default=0.0)
    part = _lowest_loss(line for line in own if line.method != "full" and _size(line) == largest)
    return (part, whole) if part and whole and _size(whole) < largest else None


def _size(line: Line) -> float:
    return line.cost["base_parameters"] or 0.0


def _lowest_loss(lines: Iterable[Line]) -> Line | None:
    return min(
        (line for line in lines if line.validation is not None), key=lambda line: line.validation or 0.0, default=None
    )


def _best(lines: Iterable[Line], metric: Metric, up: bool) -> Line | None:
    return max(lines, key=lambda line: line.metrics[metric].mean * (1 if up else -1), default=None)


def _matched(
    here: Sequence[Line], lines: Iterable[Line], kind: str, other: Mapping[str, str] | None = None
) -> list[tuple[Line, Line]]:  # fmt: skip
    """Each line with that of `kind` by the same method, on the same model or on that which `other` names."""
    by = {(line.model, line.method): line for line in here if line.kind == kind}
    found = [(line, by.get(((other or {}).get(line.model, line.model), line.method))) for line in lines]
    return [(a, b) for a, b in found if b is not None]


# ------------------------------------------------------------------------------------------------- written


def as_csv(lines: Sequence[Line]) -> str:
    """One row a line: what it is, means and standard deviations, costs."""
    metrics = list(dict.fromkeys(m for line in lines for m in line.metrics))
    own = ("set", "model", "method", "kind", "seeds", "rate", "validation", "trained_share", *COSTS)
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow([*own, *(f"{t}.{m}{end}" for t, m in metrics for end in ("", " sd")), "why"])
    for line in lines:
        told = line.told()
        figures = [line.metrics.get(m) for m in metrics]
        cells = [x for s in figures for x in ((s.mean, s.sd) if s else (None, None))]
        out.writerow(["" if x is None else x for x in (*(told[k] for k in own), *cells, line.why)])
    return file.getvalue()


def as_text(lines: Sequence[Line], metrics: Sequence[Metric]) -> str:
    """For a terminal: a table a set."""
    head = ["set", "method", "model", "trained on", *(f"{m}" for _, m in metrics), "trained", "prompt tokens"]
    body = [head]
    for line in lines:
        figures = [_words(line, m) if m in line.metrics else "" for m in metrics]
        trained, tokens = line.cost.get("trainable_parameters"), line.cost.get("prompt_tokens")
        on = {TUNED: "this set", JOINT: "all sets"}.get(line.kind, "nothing")
        body.append([
            line.set, line.method, line.model, on, *figures,
            line.why if trained is None else f"{trained:,.0f}", "" if tokens is None else f"{tokens:.0f}",
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in body) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in body)
