"""Scatter: methods as labelled points, with error bars over seeds and the front as a staircase.

Labels stand beside their points instead of in a legend; `place_labels` keeps them off each other. Shape tells the standing:
filled circle on the front, hollow circle near it, cross where beaten, diamond for the untuned base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return across * down if across > 0 and down > 0 else 0.0


def text_width(text: str, size: float = 12.0) -> float:
    """A cautious guess of the width of a label; wide scripts count double."""
    return sum(1.0 if ord(letter) > 0x2E80 else 0.58 for letter in text) * size


def place_labels(points: Sequence[Point], texts: Sequence[str], bounds: Box, bars: Sequence[Box] = ()) -> list[Box]:
    """A box for each label: near its point, inside the bounds, off the other labels, the marks and the error bars.

    Each label takes its cheapest place given all others; four rounds settle it. The order is fixed, so the result is too.
    """
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    sizes = [(text_width(text), 15.0) for text in texts]
    spots = [[_spot(point, size, turn, far) for far in (11, 20, 32, 46, 64) for turn in range(16)]
             for point, size in zip(points, sizes, strict=True)]  # fmt: skip
    chosen = [options[0] for options in spots]

    def price(i: int, box: Box) -> float:
        """What a place costs: leaving the plot, covering things, distance."""
        outside = (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, bounds)
        labels = sum(overlap(box, other) for j, other in enumerate(chosen) if j != i)
        covered = sum(overlap(box, mark) for mark in marks) * 4 + sum(overlap(box, bar) for bar in bars)
        middle = ((box[0] + box[2]) / 2 - points[i][0], (box[1] + box[3]) / 2 - points[i][1])
        return 50 * outside + 8 * labels + covered + 0.6 * math.hypot(middle[0] * 0.3, middle[1])

    for _ in range(4):
        for i, options in enumerate(spots):
            chosen[i] = min(options, key=lambda box, i=i: price(i, box))
    return chosen


def _spot(point: Point, size: Point, turn: int, far: float) -> Box:
    """A label box whose nearest edge is `far` from the point in one of sixteen directions, right first."""
    angle = turn * math.pi / 8
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
    size: Point = (560, 390),
) -> str:
    """Methods as labelled points with error bars over seeds, the front as a staircase, a reference level as a line."""
    width, height = size
    plot = (56.0, 30.0, width - 14.0, height - 46.0)
    x = scale([v for d in dots for v in ((d.x,) if d.x <= 0 else (max(d.x - d.x_sd, d.x * 0.2), d.x + d.x_sd))], *plot[0:3:2])
    levels = [] if level is None else [level[0]]
    y = _tidy([v for d in dots for v in (d.y - d.y_sd, d.y + d.y_sd)] + levels, plot[3], plot[1])
    at = [(x(dot.x), y(dot.y)) for dot in dots]
    bars = _error_bars(dots, x, y)
    names = [dot.label if len(dot.label) <= 24 else dot.label[:23] + "\u2026" for dot in dots]
    boxes = place_labels(at, names, (plot[0] + 2, plot[1], plot[2] + 12, plot[3]), bars)
    parts = [frame(x, y)]
    if level is not None:
        parts.append(el("line", x1=plot[0], x2=plot[2], y1=y(level[0]), y2=y(level[0]), class_="reference"))
        parts.append(el("text", text=level[1], x=plot[2], y=y(level[0]) - 5, class_="tick", text_anchor="end"))
    if front:
        parts.append(path(staircase([at[i] for i in front], plot, low_x=low_x, high_y=high_y), "staircase"))
    parts += [_bar_line(bar) for bar in bars]
    for dot, point, name, box in zip(dots, at, names, boxes, strict=True):
        middle = (box[0] + box[2]) / 2
        parts.append(_leader(point, box))
        parts.append(_mark(dot, *point))
        parts.append(el("text", text=name, x=middle, y=box[3] - 3.5, class_=f"name {dot.kind}", text_anchor="middle"))
    better = "\u2191 better" if high_y else "\u2193 better"
    parts.append(el("text", text=better, x=plot[0], y=14, class_="way"))
    parts.append(el("text", text=y_name, x=plot[0] + 62, y=14, class_="axis-name"))
    parts.append(el("text", text=_x_title(x, x_name, low_x), x=plot[2], y=height - 6, class_="axis-name", text_anchor="end"))
    return svg(width, height, *parts, label=label, class_="chart scatter")


def _x_title(x: Scale, name: str, low_x: bool) -> str:
    """The name of the horizontal axis with the direction that is better."""
    kind = ", log scale" if x.log else ""
    return f"\u2190 better   {name}{kind}" if low_x else f"{name}{kind}   better \u2192"


def _tidy(values: Sequence[float], start: float, end: float) -> Scale:
    """A linear scale with room for labels; shares stay within 0 to 1."""
    found = linear(values, start, end, pad=0.1)
    if min(values) >= 0 and max(values) <= 1:
        return Scale(max(found.low, -0.02), min(found.high, 1.03), start, end)
    return found
