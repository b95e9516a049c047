"""What an analysis saw: its numbers at each look, its curves by position, and texts coloured token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report import charts, words
from luthier.report.evidence import mapping, real, rows
from luthier.report.page import head_facts, read_json, repeat_view, write_page

MOST_LOOKS, MOST_TEXTS = 6, 6
KINDS = ("unshifted", "marginal", "shifted")


def looks(told: Any) -> list[dict[str, Any]]:
    """One view for each analysis of a run; `told` are its looks, as results.json has them."""
    seen = rows(told)
    names = dict.fromkeys(name for look in seen for name in look if name != "step")
    return [_view(str(name), [look for look in seen if name in look]) for name in names]


def write_shift_report(folder: str | Path) -> Path:
    """Read shift.json of a comparison of two models, token by token, and write its report.html; return the path."""
    told, _ = read_json(Path(folder) / "shift.json")
    table, names = mapping(told.get("table")), (str(told.get("base") or "base"), str(told.get("tuned") or "tuned"))
    shares = ", ".join(f"{words.percent(table.get(kind), 1)} {kind}" for kind in KINDS)
    view = {
        "title": f"{names[1]} beside {names[0]}",
        "head": head_facts(told),
        "banners": [],
        "verdict": f"Of {words.count(table.get('tokens'))} tokens that {names[1]} writes, {shares} to {names[0]}.",
        "looks": looks([{"token shift": dict(table)}]),
        "repeat": repeat_view(told),
    }
    return write_page(Path(folder), "shift.html.j2", view)


def _view(name: str, seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = list(seen) if len(seen) <= MOST_LOOKS else [*seen[: MOST_LOOKS - 1], seen[-1]]
    tables, last = [mapping(look[name]) for look in kept], mapping(seen[-1][name])
    numbers = [key for key, value in last.items() if real(value) is not None]
    return {
        "title": words.first_up(words.metric_words(name)),
        "steps": [words.count(look["step"]) if "step" in look else "" for look in kept],
        "numbers": [
            {"name": words.metric_words(key), "values": [words.number(real(t.get(key))) for t in tables]}
            for key in numbers
        ],
        "curves": [curve for key, value in last.items() for curve in _curves(str(key), rows(value))],
        "texts": [_text(one) for one in rows(last.get("coloured"))[:MOST_TEXTS]],
        "often": [(str(one[0]), words.count(one[1])) for one in _pairs(last.get("most_shifted"))],
    }


def _curves(key: str, found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A picture for each number of rows that have a position."""
    out = []
    for name in dict.fromkeys(n for row in found for n in row if n not in ("position", "tokens")):
        points = [
            (x, y)
            for row in found
            if (x := real(row.get("position"))) is not None and (y := real(row.get(name))) is not None
        ]
        if len(points) > 1:
            share = all(0 <= y <= 1 for _, y in points) and name in KINDS
            label = f"{name} by position: {words.number(points[0][1])} at the first, {words.number(points[-1][1])} at the last"
            drawn = charts.line_chart(
                [charts.Line(str(name), points)], label=label, size=(320, 170), x_name="position",
                y_range=(0.0, 1.0) if share else None,
            )  # fmt: skip
            out.append({"title": words.first_up(words.metric_words(str(name))), "svg": drawn})
    return out


def _text(one: Mapping[str, Any]) -> dict[str, Any]:
    """A text in its tokens, each with its kind and its numbers in words."""
    tokens = []
    for token in rows(one.get("tokens")):
        kind = str(token.get("kind"))
        told = ", ".join(
            f"{words.metric_words(str(k))} {words.number(real(v))}" for k, v in token.items() if real(v) is not None
        )
        tokens.append({"text": str(token.get("text")), "kind": kind if kind in KINDS else "unshifted", "tip": told})
    return {"prompt": str(one.get("prompt") or ""), "tokens": tokens}


def _pairs(told: Any) -> list[Sequence[Any]]:
    return [one for one in told if isinstance(one, list) and len(one) == 2] if isinstance(told, list) else []
