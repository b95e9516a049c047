"""Charts: small hand-made SVG, so that a page needs no library, prints sharply and follows the reader's colours.

A chart is a pure function from numbers to a string. Geometry is here, colour is in the page's style sheet: every mark
carries a class (`better`, `held`, `front` ...), and classes differ in shape, fill or dash too, never in colour alone.
All text that comes from data goes through `el`, which escapes it. Pixel coordinates grow to the right and downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from luthier.report.evidence import Change, Measure
from luthier.report.words import number

Point = tuple[float, float]
MAX_POINTS = 400
WIDE_RATIO = 30.0


def _attribute(value: object) -> str:
    """A coordinate with two decimals at most; anything else as text."""
    if isinstance(value, float):
        text = f"{value:.2f}".rstrip("0").rstrip(".")
        return "0" if text in ("-0", "") else text
    return escape(str(value), quote=True)


def el(name: str, *children: str, text: str = "", **attributes: object) -> str:
    """One element. `text` is escaped; `children` are elements already. class_ is class, text_anchor text-anchor."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = escape(text, quote=False) + "".join(children)
    return f"<{name}{pairs}>{inner}</{name}>" if inner else f"<{name}{pairs}/>"


def svg(width: float, height: float, *children: str, label: str, class_: str = "chart") -> str:
    """The root: an image with a spoken description, scaled to its column."""
    box = f"0 0 {_attribute(float(width))} {_attribute(float(height))}"
    return el("svg", *children, viewBox=box, class_=class_, role="img", aria_label=label, width=width, height=height)


def path(points: Sequence[Point], class_: str) -> str:
    """A polyline as one path; a NaN in y lifts the pen."""
    steps, pen = [], "M"
    for x, y in points:
        if math.isnan(y):
            pen = "M"
            continue
        steps.append(f"{pen}{_attribute(float(x))} {_attribute(float(y))}")
        pen = "L"
    return el("path", d="".join(steps), class_=class_) if steps else ""


@dataclass(frozen=True)
class Scale:
    """Numbers to pixels. A log scale may carry a lane for exact zeros (`zero`), which a logarithm has no place for."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside the domain are extrapolated, not clipped."""
        if self.log and value <= 0:
            return self.zero if self.zero is not None else self.start
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the domain, the zero lane included."""
        inside = log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)
        return [0.0, *inside] if self.zero is not None else inside


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that cuts the span into at most `count` parts."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of a round step inside [low, high]."""
    if not high > low:
        return [low]
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten inside [low, high], thinned to `count`; 1-2-5 steps where fewer than two powers fit."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first + 1 >= 2:
        every = math.ceil((last - first + 1) / count)
        return [10.0**power for power in range(first, last + 1, every)]
    around = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in around for factor in (1, 2, 5)]
    return [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)] or [low]


def linear(values: Sequence[float], start: float, end: float, *, pad: float = 0.06, floor_zero: bool = False) -> Scale:
    """A linear scale around the values; with `floor_zero`, from 0 when all are at or above it."""
    low, high = min(values), max(values)
    margin = (high - low) * pad or abs(high) * pad or 1.0
    bottom = 0.0 if floor_zero and low >= 0 else low - margin
    return Scale(bottom, high + margin, start, end)


def cost_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Linear from zero, or logarithmic where the values differ by more than a factor of thirty."""
    positive = [value for value in values if value > 0]
    if len(positive) < 2 or min(values) < 0 or max(positive) / min(positive) <= WIDE_RATIO:
        return linear(values, start, end, floor_zero=True)
    low, high = min(positive), max(positive)
    pad = (high / low) ** 0.07
    if min(values) > 0:
        return Scale(low / pad, high * pad, start, end, log=True)
    lane = start + 0.07 * (end - start)
    return Scale(low / pad, high * pad, start + 0.14 * (end - start), end, log=True, zero=lane)


def smooth(points: Sequence[Point], memory: float | None = None) -> list[Point]:
    """Average with weights that fall off exponentially to both sides, so that the curve does not lag behind the points.

    `memory` is the number of points that count to each side; by default a thirtieth of the series. NaN stays a gap.
    """
    keep = 1 - 1 / (max(2.0, len(points) / 30) if memory is None else memory)
    ahead, behind = _decayed(points, keep), _decayed(points[::-1], keep)[::-1]
    out = []
    for (x, y), (sum_a, weight_a), (sum_b, weight_b) in zip(points, ahead, behind, strict=True):
        # The point itself is in both sums.
        out.append((x, y if math.isnan(y) else (sum_a + sum_b - y) / (weight_a + weight_b - 1)))
    return out


def _decayed(points: Sequence[Point], keep: float) -> list[tuple[float, float]]:
    """Decayed sum and weight up to each point; a NaN adds nothing."""
    total, weight, out = 0.0, 0.0, []
    for _, y in points:
        solid = not math.isnan(y)
        total, weight = keep * total + (y if solid else 0.0), keep * weight + solid
        out.append((total, weight))
    return out


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about `most` points; of each bucket the lowest and highest stay, so that spikes and NaNs stay visible."""
    if len(points) <= most:
        return list(points)
    width, kept = 2 * len(points) / most, []
    for bucket in range(math.ceil(len(points) / width)):
        part = range(round(bucket * width), min(round((bucket + 1) * width), len(points)))
        gaps = [i for i in part if math.isnan(points[i][1])]
        solid = [i for i in part if not math.isnan(points[i][1])]
        chosen = set(gaps[:1])
        if solid:
            chosen |= {min(solid, key=lambda i: points[i][1]), max(solid, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(chosen)]
    return kept


@dataclass(frozen=True)
class Line:
    """One curve. kind: raw (faint), main, held (dashed, with dots), ghost (other methods)."""

    label: str
    points: Sequence[Point]
    kind: str = "main"


def _spread_labels(
    wanted: Sequence[tuple[float, str, str, float]], low: float, high: float, gap: float = 13.0
) -> list[float]:
    """Heights for labels at the end of lines: near their lines, at least `gap` apart, within bounds."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
    heights = [0.0] * len(wanted)
    previous = low - gap
    for i in order:
        previous = heights[i] = max(wanted[i][0], previous + gap, low)
    ceiling = high + gap
    for i in reversed(order):
        ceiling = heights[i] = min(heights[i], ceiling - gap)
    return heights


def frame(x: Scale, y: Scale, x_count: int = 5, y_count: int = 4) -> str:
    """Horizontal grid lines with their values, and values along the bottom."""
    left, right, bottom = min(x.start, x.end), max(x.start, x.end), max(y.start, y.end)
    left = min(left, x.zero) - 10 if x.zero is not None else left
    parts = []
    for tick in y.ticks(y_count):
        parts.append(el("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(el("text", text=number(tick), x=left - 7, y=y(tick) + 3.8, class_="tick", text_anchor="end"))
    for tick in x.ticks(x_count):
        parts.append(el("line", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(el("text", text=_short(tick), x=x(tick), y=bottom + 17, class_="tick", text_anchor="middle"))
    parts.append(el("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    return "".join(parts)


def _short(value: float) -> str:
    """A tick in few characters: 20k, 1.5M, 10G."""
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            base = 1e3 if name == "k" else size
            return f"{value / base:g}{name}"
    return number(value)


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    size: Point = (420, 220),
    x_name: str = "step",
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    ends: bool = True,
) -> str:
    """Curves over steps, with the last value of each written at its end; `log` needs a positive range."""
    width, height = size
    solid = [p for line in lines for p in line.points if not math.isnan(p[1])]
    if not solid:
        return ""
    labelled = [line for line in lines if ends and line.kind in ("main", "held")]
    right = width - (62 if labelled else 12)
    x = linear([p[0] for line in lines for p in line.points], 52, right, pad=0.0)
    seen = list(y_range) if y_range else [p[1] for p in solid]
    if log:
        y = Scale(min(seen) / 1.15, max(seen) * 1.15, height - 30, 12, log=True)
    else:
        y = linear(seen, height - 30, 12, floor_zero=min(seen) < 0.4 * max(seen))
    parts = [frame(x, y, 4)]
    for line in lines:
        at = [(x(step), y(value)) for step, value in thin(line.points)]
        parts.append(path(at, f"line {line.kind}"))
        if line.kind == "held" or len(at) == 1:
            few = at if len(at) <= 30 else at[-1:]
            parts += [el("circle", cx=a, cy=b, r=2.6, class_=f"dot {line.kind}") for a, b in few if not math.isnan(b)]
    parts += _end_labels(labelled, x, y, right)
    parts.append(el("text", text=x_name, x=right, y=height - 2, class_="tick", text_anchor="end"))
    return svg(width, height, *parts, label=label)


def _end_labels(lines: Sequence[Line], x: Scale, y: Scale, right: float) -> list[str]:
    """The last value of each line, moved apart where they would overlap."""
    wanted = []
    for line in lines:
        solid = [p for p in line.points if not math.isnan(p[1])]
        if solid:
            wanted.append((y(solid[-1][1]) + 4, number(solid[-1][1]), line.kind, x(solid[-1][0]) + 8))
    heights = _spread_labels(wanted, 12, y.start + 4)
    return [
        el("text", text=text, x=min(start, right + 8), y=at, class_=f"end {kind}")
        for (_, text, kind, start), at in zip(wanted, heights, strict=True)
    ]


STRIP = (280.0, 34.0)
_INSET = 9.0


def _strip_scale(change: Change) -> Scale:
    """0 to 1 for shares, which makes rows comparable; otherwise the row's own range."""
    if change.is_rate:
        return Scale(0, 1, _INSET, STRIP[0] - _INSET)
    sides = [side for side in (change.base, change.tuned) if side is not None]
    seen = [bound for side in sides for bound in (side.value, side.low, side.high) if bound is not None]
    low = 0.0 if min(seen) >= 0 and min(seen) < 0.5 * max(seen) else min(seen)
    span = (max(seen) - low) or abs(low) or 1.0
    return Scale(low, low + span * 1.08, _INSET, STRIP[0] - _INSET)


def _dot_and_interval(side: Measure, x: Scale, y: float, kind: str) -> str:
    """A dot on its interval: hollow for the base, filled for the tuned model."""
    bar = ""
    if side.low is not None and side.high is not None:
        bar = el("line", x1=x(side.low), x2=x(side.high), y1=y, y2=y, class_=f"bar {kind}")
    return bar + el("circle", cx=x(side.value), cy=y, r=4.6, class_=f"mark {kind}")


def change_strip(change: Change, label: str) -> str:
    """One row of the before/after chart: base above, tuned below, joined by a thin line."""
    width, height = STRIP
    if change.base is None and change.tuned is None:
        return ""
    x, top, low = _strip_scale(change), 11.0, 23.0
    ticks = (0, 0.25, 0.5, 0.75, 1) if change.is_rate else ()
    parts = [el("line", x1=x(t), x2=x(t), y1=0.0, y2=height, class_="grid") for t in ticks]
    if not change.is_rate:
        parts = [el("line", x1=_INSET, x2=width - _INSET, y1=17.0, y2=17.0, class_="grid")]
    if change.base is not None and change.tuned is not None:
        start, end = x(change.base.value), x(change.tuned.value)
        parts.append(el("line", x1=start, y1=top, x2=end, y2=low, class_="join"))
    if change.base is not None:
        parts.append(_dot_and_interval(change.base, x, top, "base"))
    if change.tuned is not None:
        parts.append(_dot_and_interval(change.tuned, x, low, change.verdict or "open"))
    return svg(width, height, *parts, label=label, class_="strip")


def strip_axis() -> str:
    """The shared axis over the strips: 0, one half, 1."""
    width, x = STRIP[0], Scale(0, 1, _INSET, STRIP[0] - _INSET)
    anchors = ((0.0, "0", "start", -4.0), (0.5, "0.5", "middle", 0.0), (1.0, "1", "end", 4.0))
    parts = [el("text", text=t, x=x(v) + d, y=12.0, class_="tick", text_anchor=a) for v, t, a, d in anchors]
    return svg(width, 16, *parts, label="scale from 0 to 1 for shares", class_="strip")


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram."""

    confidence: float
    accuracy: float
    count: float


def reliability(bins: Sequence[Bin], *, label: str) -> str:
    """Accuracy against confidence: on the dashed diagonal the model knows what it knows; large dots hold many items."""
    solid = sorted((b for b in bins if b.count > 0), key=lambda b: b.confidence)
    if not solid:
        return ""
    x, y = Scale(0, 1, 42, 252), Scale(0, 1, 222, 12)
    most = max(b.count for b in solid)
    at = [(x(b.confidence), y(b.accuracy)) for b in solid]
    gaps = [el("line", x1=a, x2=a, y1=b, y2=y(s.confidence), class_="gap") for (a, b), s in zip(at, solid, strict=True)]
    dots = []
    for (a, b), one in zip(at, solid, strict=True):
        tip = f"confidence {one.confidence:.2f}, accuracy {one.accuracy:.2f}, {one.count:.0f} items"
        radius = 2.5 + 5.5 * math.sqrt(one.count / most)
        dots.append(el("circle", el("title", text=tip), cx=a, cy=b, r=radius, class_="mark bin"))
    parts = [
        frame(x, y),
        el("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal"),
        *gaps,
        path(at, "line main"),
    ]
    parts.append(el("text", text="confidence \u2192", x=252, y=254, class_="tick", text_anchor="end"))
    parts.append(el("text", text="\u2191 accuracy", x=48, y=22, class_="tick"))
    return svg(264, 260, *parts, *dots, label=label)


def save_png(folder: str | Path, *, dpi: int = 144) -> list[Path]:
    """Write training_loss.png and, where eval_loss was measured, training_eval_loss.png; return what was written.

    For people who paste pictures: the page itself draws its own. A folder without losses writes nothing.
    """
    from luthier.report.page import read_metrics, series

    folder = Path(folder)
    found, _ = read_metrics(folder)
    written = []
    for key, name, title in (
        ("loss", "training_loss.png", "training loss"),
        ("eval_loss", "training_eval_loss.png", "held-out loss"),
    ):
        points = series(found, key)
        if any(not math.isnan(y) for _, y in points):
            written.append(_plot(points, folder / name, title, dpi, smoothed=key == "loss"))
    return written


def _plot(points: Sequence[Point], path: Path, title: str, dpi: int, *, smoothed: bool) -> Path:
    """One curve as a PNG, drawn without a display and without a date in the file."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.report.page import write_atomically

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = zip(*points, strict=True)
    if smoothed:
        axes.plot(steps, values, color="#9ec3dd", linewidth=0.9, label="each step")
        axes.plot(*zip(*smooth(points), strict=True), color="#0b5c8f", linewidth=2, label="smoothed")
        axes.legend(frameon=False)
    else:
        axes.plot(steps, values, color="#0b5c8f", linewidth=2, marker="o", markersize=4)
    axes.set(xlabel="step", ylabel=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())
