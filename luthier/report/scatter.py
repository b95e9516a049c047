"""Scatter: methods as labelled points, with error bars over seeds and the front as a staircase.

Labels stand beside their points instead of in a legend; `place_labels` keeps them off each other. Shape tells the
standing: filled circle on the front, hollow circle near it, cross where beaten, diamond for the untuned base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from luthier.report.charts import Point, Scale, cost_scale, el, frame, linear, path, svg


@dataclass(frozen=True)
class Dot:
    """A method in a scatter: means, standard deviations over seeds, and how it is drawn (front, near, beaten, base)."""

    label: str
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0
    kind: str = "near"
    tip: str = ""


Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """The shared area of two boxes (left, top, right, bottom)."""
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))


def text_width(text: str, size: float = 12.0) -> float:
    """A cautious guess of the width of a label; wide scripts count double."""
    return sum(1.0 if ord(letter) > 0x2E80 else 0.58 for letter in text) * size


def place_labels(points: Sequence[Point], texts: Sequence[str], bounds: Box, bars: Sequence[Box] = ()) -> list[Box]:
    """A box for each label: near its point, inside the bounds, off the other labels, the marks and the error bars.

    Each label takes its cheapest place given all others; four rounds settle it. The order is fixed, hence the result.
    """
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    options = [_options(i, points, text_width(text), bounds, marks, bars) for i, text in enumerate(texts)]
    chosen = [min(choices)[1] for choices in options]
    for _ in range(4):
        for i, choices in enumerate(options):
            others = chosen[:i] + chosen[i + 1 :]
            crowded = ((price + 8 * sum(overlap(box, other) for other in others), box) for price, box in choices)
            chosen[i] = min(crowded)[1]
    return chosen


def _options(
    i: int, points: Sequence[Point], width: float, bounds: Box, marks: Sequence[Box], bars: Sequence[Box]
) -> list[tuple[float, Box]]:
    """The places that a label may take, each with its price.

    It costs to leave the plot, to cover something, to stand far away, and to stand so near to another point that a
    reader could take the label for that point's.
    """
    point, found = points[i], []
    rivals = [other for j, other in enumerate(points) if j != i and math.dist(other, point) < 200 + width]
    for far in (11, 20, 34, 50, 70):
        for turn in range(12):
            box = _spot(point, (width, 15.0), turn, far)
            outside = width * 15.0 - overlap(box, bounds)
            covered = 4 * sum(overlap(box, mark) for mark in marks) + 2 * sum(overlap(box, bar) for bar in bars)
            mine = gap(point, box)
            doubt = sum(70 * max(0.0, 1.5 - gap(other, box) / (mine + 4)) for other in rivals)
            found.append((50 * outside + covered + doubt + 0.6 * far, box))
    return found


def gap(point: Point, box: Box) -> float:
    """The distance from a point to the nearest edge of a box; 0 inside."""
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    down = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, down)


def _spot(point: Point, size: Point, turn: int, far: float) -> Box:
    """A label box whose nearest edge is `far` from the point in one of twelve directions, right first."""
    angle = turn * math.pi / 6
    dx, dy = math.cos(angle), math.sin(angle)
    middle_x = point[0] + dx * far + (size[0] / 2) * (dx if abs(dx) < 0.3 else math.copysign(1, dx))
    middle_y = point[1] + dy * far
    return (middle_x - size[0] / 2, middle_y - size[1] / 2, middle_x + size[0] / 2, middle_y + size[1] / 2)


def staircase(front: Sequence[Point], plot: Box, *, low_x: bool, high_y: bool) -> list[Point]:
    """The edge of what the front reaches, in pixels: from the best x inwards, then out to the side of bad x."""
    order = sorted(front, key=lambda p: (p[0] if low_x else -p[0], p[1] if high_y else -p[1]))
    edge: list[Point] = [(order[0][0], plot[3] if high_y else plot[1])]
    for x, y in order:
        edge += [(x, edge[-1][1]), (x, y)]
    return [*edge, (plot[2] if low_x else plot[0], edge[-1][1])]


def _error_bars(dots: Sequence[Dot], x: Scale, y: Scale) -> list[Box]:
    """Thin boxes along the error bars; on a log axis a bar that would reach zero stops at the edge."""
    boxes = []
    for dot in dots:
        px, py = x(dot.x), y(dot.y)
        if dot.y_sd:
            boxes.append((px - 1, y(dot.y + dot.y_sd), px + 1, y(dot.y - dot.y_sd)))
        if dot.x_sd and not (x.log and dot.x <= 0):
            low = x(dot.x - dot.x_sd) if not x.log or dot.x > dot.x_sd else x.start
            boxes.append((min(low, x(dot.x + dot.x_sd)), py - 1, max(low, x(dot.x + dot.x_sd)), py + 1))
    return boxes


def _bar_line(box: Box) -> str:
    """An error bar from its box."""
    upright = box[2] - box[0] <= 2
    if upright:
        return el("line", x1=(box[0] + box[2]) / 2, x2=(box[0] + box[2]) / 2, y1=box[1], y2=box[3], class_="error")
    return el("line", x1=box[0], x2=box[2], y1=(box[1] + box[3]) / 2, y2=(box[1] + box[3]) / 2, class_="error")


def _mark(dot: Dot, px: float, py: float) -> str:
    """Circle on the front, hollow circle near it, cross when beaten, diamond for the base."""
    tip = el("title", text=dot.tip or dot.label)
    if dot.kind == "beaten":
        shape = el("path", d=f"M{px - 4:.2f} {py - 4:.2f}l8 8m0 -8l-8 8", class_="mark cross")
    elif dot.kind == "base":
        shape = el("path", d=f"M{px:.2f} {py - 6:.2f}l6 6l-6 6l-6 -6Z", class_="mark untuned")
    else:
        shape = el("circle", cx=px, cy=py, r=5.2, class_=f"mark {dot.kind}")
    return el("g", tip, shape)


def _leader(point: Point, box: Box) -> str:
    """A hairline from a mark to a label that had to stand away."""
    near = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1] + 3), box[3] - 3))
    length = math.hypot(near[0] - point[0], near[1] - point[1])
    if length < 16:
        return ""
    start = (point[0] + (near[0] - point[0]) * 7 / length, point[1] + (near[1] - point[1]) * 7 / length)
    return el("line", x1=start[0], y1=start[1], x2=near[0], y2=near[1], class_="leader")


def scatter(
    dots: Sequence[Dot],
    *,
    label: str,
    x_name: str,
    y_name: str,
    scale: Callable[[Sequence[float], float, float], Scale] = cost_scale,
    front: Sequence[int] = (),
    low_x: bool = True,
    high_y: bool = True,
    level: tuple[float, str] | None = None,
    size: Point = (760, 430),
) -> str:
    """Methods as labelled points with error bars over seeds, the front as a staircase, a reference level as a line."""
    width, height = size
    plot = (56.0, 30.0, width - 14.0, height - 46.0)
    x = scale([v for dot in dots for v in _reach(dot)], plot[0], plot[2])
    heights = [v for d in dots for v in (d.y - d.y_sd, d.y + d.y_sd)]
    level = level if level is None or _near(level[0], heights) else None
    y = _tidy(heights if level is None else [*heights, level[0]], plot[3], plot[1])
    at = [(x(dot.x), y(dot.y)) for dot in dots]
    bars = _error_bars(dots, x, y)
    names = [dot.label if len(dot.label) <= 24 else dot.label[:23] + "\u2026" for dot in dots]
    edge = staircase([at[i] for i in front], plot, low_x=low_x, high_y=high_y) if front else []
    boxes = place_labels(at, names, (plot[0] + 2, plot[1], plot[2] + 12, plot[3]), [*bars, *_thin_boxes(edge)])
    parts = [frame(x, y)]
    if level is not None:
        parts.append(el("line", x1=plot[0], x2=plot[2], y1=y(level[0]), y2=y(level[0]), class_="reference"))
        parts.append(el("text", text=level[1], x=plot[2], y=y(level[0]) - 5, class_="tick", text_anchor="end"))
    parts.append(path(edge, "staircase"))
    parts += [_bar_line(bar) for bar in bars]
    for dot, point, name, box in zip(dots, at, names, boxes, strict=True):
        middle = (box[0] + box[2]) / 2
        parts.append(_leader(point, box))
        parts.append(_mark(dot, *point))
        parts.append(el("text", text=name, x=middle, y=box[3] - 3.5, class_=f"name {dot.kind}", text_anchor="middle"))
    better = "\u2191 better" if high_y else "\u2193 better"
    parts.append(el("text", text=better, x=plot[0], y=14, class_="way"))
    parts.append(el("text", text=y_name, x=plot[0] + 62, y=14, class_="axis-name"))
    parts += _x_title(x_name + (", log scale" if x.log else ""), plot, height - 6, low_x)
    return svg(width, height, *parts, label=label, class_="chart scatter")


def _x_title(name: str, plot: Box, y: float, low_x: bool) -> list[str]:
    """The name of the horizontal axis; 'better' stands at the end that is."""
    left, right = {"x": plot[0], "y": y}, {"x": plot[2], "y": y, "text_anchor": "end"}
    way = "\u2190 better" if low_x else "better \u2192"
    return [
        el("text", text=way, class_="way", **(left if low_x else right)),
        el("text", text=name, class_="axis-name", **(right if low_x else left)),
    ]


def _reach(dot: Dot) -> tuple[float, ...]:
    """The ends of a horizontal error bar; the lower one stays positive, so that a log axis remains possible."""
    return (dot.x,) if dot.x <= 0 else (max(dot.x - dot.x_sd, dot.x * 0.2), dot.x + dot.x_sd)


def _thin_boxes(edge: Sequence[Point]) -> list[Box]:
    """Boxes along the segments of a staircase, for labels to avoid."""
    return [
        (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1) for a, b in pairwise(edge)
    ]


def _near(level: float, values: Sequence[float]) -> bool:
    """Whether a reference level can be drawn without squeezing the methods into less than two thirds of the height."""
    low, high = min(values), max(values)
    return max(high, level) - min(low, level) <= 1.5 * (high - low)


def _tidy(values: Sequence[float], start: float, end: float) -> Scale:
    """A linear scale with room for labels; shares stay within 0 to 1."""
    found = linear(values, start, end, pad=0.1)
    if min(values) >= 0 and max(values) <= 1:
        return Scale(max(found.low, -0.02), min(found.high, 1.03), start, end)
    return found
