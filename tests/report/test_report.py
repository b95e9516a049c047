"""The reports: what they say follows from the numbers, all data is escaped, the same input gives the same bytes."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import folders

from luthier.report import charts, save_png, scatter, words, write_compare_report, write_run_report
from luthier.report.evidence import (
    Change,
    Measure,
    Spread,
    changes,
    clearly_better,
    noise,
    pareto_front,
    standings,
    t95,
)
from luthier.report.page import clean, read_rows, safe_link
from luthier.report.run import differing

VOID = {"meta", "col", "br", "input", "img", "link", "hr"}


class Outline(HTMLParser):
    """Checks that tags are balanced, and collects elements, attributes and text."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that closes itself."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which must be this one."""
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text.append(data)


def outline(page: str) -> Outline:
    """The parsed page."""
    found = Outline()
    found.feed(page)
    found.close()
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All pages, rendered once."""
    runs, compares = folders.everything(tmp_path_factory.mktemp("reports"))
    write_run_report(compares["five"] / "runs" / "full-1")
    written = {name: write_run_report(path) for name, path in runs.items()}
    written |= {name: write_compare_report(path) for name, path in compares.items()}
    return {name: path.read_text(encoding="utf-8") for name, path in written.items()}


NAMES = [
    "normal", "interrupted", "sparse", "hostile", "empty",
    "five", "twelve", "one_seed", "hostile_compare", "empty_compare",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_page_is_well_formed_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    """Balanced tags, unique ids, one heading, no address outside, no script but the page's own."""
    found = outline(pages[name])
    assert not found.problems
    assert not found.open
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("h1") == 1
    assert tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "image", "use", "form"} & set(tags)
    for tag, attrs in found.elements:
        assert not any(key.startswith("on") for key in attrs), (tag, attrs)
        assert "src" not in attrs
        href = attrs.get("href") or ""
        assert not re.match(r"^[a-z]+:|^/|.*\.\.", href), href
    assert "url(" not in pages[name]
    assert "@import" not in pages[name]


@pytest.mark.parametrize("name", NAMES)
def test_charts_are_described(pages: dict[str, str], name: str) -> None:
    """Each chart is an image with words, or decoration that a screen reader skips."""
    for tag, attrs in outline(pages[name]).elements:
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs.get("role") == "img" and attrs.get("aria-label"))


@pytest.mark.parametrize("name", ["hostile", "hostile_compare"])
def test_hostile_text_stays_text(pages: dict[str, str], name: str) -> None:
    """Markup and template code in data arrive as visible text; unprintable characters are replaced."""
    page = pages[name]
    assert "<script>alert(1)" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in "".join(outline(page).text)
    assert "javascript:" not in page
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e]", page)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Two writes agree byte by byte, also in a process with another hash seed, and leave no other file."""
    run = folders.run_folder(tmp_path / "run")
    compare = folders.compare_folder(tmp_path / "compare", ["full", "lora", "ia3"], [1, 2])
    before = {path.name for path in run.iterdir()}
    first = write_run_report(run).read_bytes(), write_compare_report(compare).read_bytes()
    code = "import sys; from luthier.report import *; write_run_report(sys.argv[1]); write_compare_report(sys.argv[2])"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, str(run), str(compare)]
    subprocess.run(command, check=True, cwd=root, env={"PYTHONHASHSEED": "77", "PYTHONPATH": root, "PATH": ""})
    assert first == ((run / "report.html").read_bytes(), (compare / "report.html").read_bytes())
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_import_is_light() -> None:
    """Neither jinja2 nor matplotlib nor numpy nor torch is loaded by the import."""
    heavy = ["jinja2", "matplotlib", "numpy", "torch", "yaml"]
    code = f"import sys, luthier.report; print([name for name in {heavy} if name in sys.modules])"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_files_for_people_who_want_files(tmp_path: Path) -> None:
    """Both pictures where both losses are there, none where nothing was logged."""
    run = folders.run_folder(tmp_path / "run")
    assert [path.name for path in save_png(run)] == ["training_loss.png", "training_eval_loss.png"]
    assert (run / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert save_png(tmp_path) == []


def change(
    before: float | None,
    after: float | None,
    verdict: str = "",
    *,
    group: str = "target",
    title: str = "Reverse",
    metric: str = "exact_match",
    higher: bool = True,
    half: float | None = 0.02,
    n: int | None = 200,
) -> Change:
    """A Change with its interval around the difference."""
    sides = [None if v is None else Measure(v, v, v, n, higher) for v in (before, after)]
    difference = None if None in (before, after) else after - before
    low, high = (None, None) if difference is None or half is None else (difference - half, difference + half)
    return Change(
        task=title, title=title, group=group, metric=metric, base=sides[0], tuned=sides[1], difference=difference,
        low=low, high=high, n=n, stated=verdict,
    )  # fmt: skip


def kept(before: float, after: float, verdict: str, title: str = "Stored facts") -> Change:
    """A retention task."""
    return change(before, after, verdict, group="retention", title=title)


VERDICTS = [
    (
        [change(0.02, 0.97, "better"), kept(1.0, 0.69, "worse")],
        "hft raised exact match on Reverse from 0.02 to 0.97 (95% interval of the difference +0.93 to +0.97, n=200); "
        "it lost 31 points of Stored facts.",
    ),
    (
        [change(0.02, 0.97, "better", n=None, half=None), kept(1.0, 0.99, "same")],
        "hft raised exact match on Reverse from 0.02 to 0.97; no clear loss of Stored facts.",
    ),
    (
        [change(0.50, 0.40, "worse"), kept(1.0, 1.0, "same"), kept(0.8, 0.8, "same", "Copy")],
        "hft lowered exact match on Reverse from 0.50 to 0.40 (95% interval of the difference "
        "\u22120.12 to \u22120.08, n=200); no clear loss on the 2 retention tasks.",
    ),
    (
        [change(0.50, 0.51, "same")],
        "hft made no clear change to exact match on Reverse: from 0.50 to 0.51 (95% interval of the difference "
        "\u22120.01 to +0.03, n=200); what it cost elsewhere was not measured.",
    ),
    (
        [change(12.0, 8.5, "better", metric="perplexity", higher=False, half=None, n=None, title="Law")],
        "hft lowered perplexity on Law from 12 to 8.5, which is better; what it cost elsewhere was not measured.",
    ),
    (
        [change(0.02, 0.97, half=None), kept(1.0, 0.9, "worse"), kept(1.0, 0.5, "worse", "Copy")],
        "hft moved exact match on Reverse from 0.02 to 0.97; without a paired test nothing is claimed; "
        "it lost 50 points of Copy and lost 10 points of Stored facts.",
    ),
    (
        [change(None, 0.97), change(0.9, 0.9, group="retention", title="Copy", half=None)],
        "hft reached 0.97 in exact match on Reverse; the base was not measured, so nothing is compared; "
        "what it cost elsewhere was not tested.",
    ),
    ([kept(1.0, 0.69, "worse")], "No target task was measured; it lost 31 points of Stored facts."),
    ([], "Nothing was measured in this run."),
]


@pytest.mark.parametrize(("found", "sentence"), VERDICTS)
def test_verdict_follows_from_numbers(found: list[Change], sentence: str) -> None:
    """The opening sentence, case by case."""
    assert words.run_verdict("hft", found) == sentence


def test_unfinished_run_has_no_verdict() -> None:
    """An interrupted run says so, with its last step."""
    said = words.run_verdict("hft", [], "interrupted", 1410)
    assert said == "The run was interrupted after step 1,410; nothing was measured."


@pytest.mark.parametrize(
    ("low", "high", "higher", "verdict"),
    [(0.1, 0.2, True, "better"), (0.1, 0.2, False, "worse"), (-0.2, -0.1, True, "worse"), (-0.2, -0.1, False, "better"),
     (-0.1, 0.1, True, "same"), (0.0, 0.1, True, "same"), (None, 0.1, True, ""), (0.1, 0.2, None, "")],
)  # fmt: skip
def test_interval_decides_where_no_verdict_is_stated(
    low: float | None, high: float | None, higher: bool | None, verdict: str
) -> None:
    """Zero inside: same. Zero outside: by direction. No interval or direction: no claim."""
    one = Measure(0.5, higher_is_better=higher)
    assert Change("t", "t", "target", "m", base=one, tuned=one, low=low, high=high).verdict == verdict


def test_no_clear_change_says_what_it_rules_out() -> None:
    """A retained task states the loss that the interval excludes; a loss states its size."""
    assert words.side_effect(kept(0.80, 0.79, "same")).startswith(
        "No clear change; a loss of more than 3 points is unlikely"
    )
    assert words.side_effect(kept(1.0, 0.69, "worse")).startswith("Lost 31 points: exact match from 1.00 to 0.69")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [(words.count(950), "950"), (words.count(1_234_567), "1.23 M"), (words.count(7.1e9), "7.1 B"),
     (words.count(0), "0"), (words.size(849_920), "830 KiB"), (words.size(0), "0 bytes"),
     (words.duration(0.0124), "12.4 ms"), (words.duration(31.4), "31.4 s"), (words.duration(125), "2 min 5 s"),
     (words.duration(59.99), "1 min"),
     (words.duration(12_000), "3 h 20 min"), (words.flops(1.47e12), "1.47 TFLOP"), (words.percent(1, 8), "12.5%"),
     (words.number(None), "not measured"), (words.number(math.nan), "not measured"), (words.count("x"), "not measured"),
     (words.number(2e-5), "2e\u22125"), (words.number(-3.14159), "\u22123.14"), (words.p_words(1e-9), "<\u00a00.001"),
     (words.rate(0.996), "0.996"), (words.rate(1.0), "1.00"), (words.signed(-0.31, True), "\u22120.31"),
     (words.signed(-0.0001, True), "0.00"), (words.points(0.004), "0.4 points"), (words.points(0.01), "1 point"),
     (words.listed(["a", "b", "c", "d"], most=2), "a, b and 2 more"),
     (words.metric_words("kl_from_base"), "KL from base")],
)  # fmt: skip
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    """Units, rounding and what is missing."""
    assert shown == expected


def dominated(points: list[tuple[float, float]], i: int, low_x: bool, high_y: bool) -> bool:
    """Whether another point is at least as good in both and better in one."""
    sx, sy = (1 if low_x else -1), (1 if high_y else -1)
    x, y = points[i]
    return any(sx * a <= sx * x and sy * b >= sy * y and (a, b) != (x, y) for j, (a, b) in enumerate(points) if j != i)


def test_front_equals_brute_force() -> None:
    """For random points with many ties, in all four directions; ordered from the best x inwards."""
    dice = random.Random(0)
    for low_x, high_y in itertools.product((True, False), repeat=2):
        for _ in range(150):
            points = [(float(dice.randrange(6)), float(dice.randrange(6))) for _ in range(dice.randrange(1, 12))]
            front = pareto_front(points, low_x=low_x, high_y=high_y)
            assert sorted(front) == [i for i in range(len(points)) if not dominated(points, i, low_x, high_y)]
            xs = [points[i][0] for i in front]
            assert xs == sorted(xs, reverse=not low_x)


def test_seeds_noise_is_not_a_difference() -> None:
    """Within noise nothing is claimed; one seed never claims; a wide gap does; the direction counts."""
    a, b = Spread((0.90, 0.94, 0.92)), Spread((0.89, 0.93, 0.90))
    assert not clearly_better(a, b, True)
    assert not clearly_better(Spread((0.9,)), Spread((0.1,)), True)
    assert clearly_better(a, Spread((0.50, 0.52, 0.51)), True)
    assert clearly_better(Spread((0.50, 0.52, 0.51)), a, False)
    assert not clearly_better(Spread((0.9, 0.9)), Spread((0.9, 0.9)), True)
    assert not clearly_better(Spread((0.92, 0.92), items=0.04), Spread((0.90, 0.90), items=0.04), True)


def test_noise_is_the_welch_interval() -> None:
    """Equal spreads of three seeds: t with four degrees of freedom; sides swapped, same noise."""
    a, b = Spread((1.0, 2.0, 3.0)), Spread((5.0, 6.0, 7.0))
    assert noise(a, b) == pytest.approx(2.776 * math.sqrt(2 / 3))
    assert noise(a, b) == noise(b, a)
    assert t95(1) == 12.706
    assert t95(1e9) == pytest.approx(1.96)
    assert all(t95(f / 7) >= t95((f + 1) / 7) for f in range(7, 300))


def test_standings_against_the_front() -> None:
    """Clear, by mean only, behind within noise, clearly beaten."""
    quality = [Spread((v - 0.01, v, v + 0.01)) for v in (0.50, 0.90, 0.91, 0.89, 0.40)]
    found = standings(["a", "b", "c", "d", "e"], [1, 10, 100, 50, 20], quality, True)
    assert [(one.kind, one.by) for one in found] == [
        ("clear", ""), ("clear", ""), ("mean", "b"), ("near", "b"), ("beaten", "b")
    ]  # fmt: skip


def test_scales_and_ticks() -> None:
    """Ends map to ends, a log scale to equal ratios, zeros to their own lane; ticks are round and inside."""
    line = charts.Scale(10, 20, 100, 0)
    assert (line(10), line(15), line(20)) == (100, 50, 0)
    log = charts.Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5)
    lane = charts.cost_scale([0, 1e3, 1e6], 0, 100)
    assert lane.log
    assert lane(0) < lane(1e3) < lane(1e6)
    assert lane.ticks()[0] == 0
    assert not charts.cost_scale([10, 20, 30], 0, 1).log
    assert charts.nice_ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.log_ticks(1, 1000) == [1, 10, 100, 1000]
    dice = random.Random(1)
    for _ in range(300):
        low = dice.uniform(-1e3, 1e3)
        high = low + 10 ** dice.uniform(-6, 6)
        ticks = charts.nice_ticks(low, high, 5)
        assert 1 <= len(ticks) <= 6
        assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)
    assert charts.linear([3.0, 3.0], 0, 1)(3.0) == pytest.approx(0.5)


def test_smoothing_neither_lags_nor_invents() -> None:
    """A constant stays constant, a line stays a line in the middle, a NaN stays a gap."""
    assert {round(y, 9) for _, y in charts.smooth([(i, 2.0) for i in range(50)])} == {2.0}
    middle = charts.smooth([(i, float(i)) for i in range(101)], memory=4)[50]
    assert middle == (50, pytest.approx(50))
    gap = charts.smooth([(0, 1.0), (1, math.nan), (2, 1.0)])
    assert math.isnan(gap[1][1])
    assert gap[0][1] == gap[2][1] == 1.0


def test_thinning_keeps_extremes() -> None:
    """A long series becomes short, in order, with its lowest and highest point."""
    dice = random.Random(2)
    series = [(float(i), dice.random()) for i in range(20_000)]
    short = charts.thin(series)
    assert len(short) <= 410
    assert short == sorted(short)
    assert {min(y for _, y in series), max(y for _, y in series)} <= {y for _, y in short}


def test_labels_do_not_collide() -> None:
    """Twelve crowded labels: no two overlap, all stay inside, the choice is repeatable."""
    dice = random.Random(5)
    points = [(dice.uniform(280, 420), dice.uniform(150, 260)) for _ in range(12)]
    names, bounds = [f"method_{i}" for i in range(12)], (50.0, 30.0, 750.0, 390.0)
    boxes = scatter.place_labels(points, names, bounds)
    assert all(scatter.overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(scatter.overlap(box, bounds) == pytest.approx((box[2] - box[0]) * 15) for box in boxes)
    assert boxes == scatter.place_labels(points, names, bounds)


def test_elements_escape() -> None:
    """Text and attributes of a chart cannot break out."""
    made = charts.el("text", text="<b>&", class_='"><x', x=1.50, y=-0.001)
    assert made == '<text class="&quot;&gt;&lt;x" x="1.5" y="0">&lt;b&gt;&amp;</text>'


def test_word_difference() -> None:
    """Only the words that differ are marked; nothing is marked where nearly all would be; the text is kept whole."""
    assert differing("in Absam", "in Cremona") == [("in ", False), ("Absam", True)]
    assert differing("same words", "same words") == [("same words", False)]
    assert differing("one two", "utterly other words that share nothing at all") == [("one two", False)]
    assert differing("", "x") == []
    assert differing("new", "") == [("new", False)]
    text = "a <b> c\n d\u00e9j\u00e0 \u6f22\u5b57!"
    assert "".join(piece for piece, _ in differing(text, "a c \u6f22")) == text


@pytest.mark.parametrize(
    ("path", "link"),
    [("runs/a-1", "runs/a-1"), ("runs/a b", "runs/a%20b"), ("./runs//x", "runs/x"), ("javascript:alert(1)", ""),
     ("../x", ""), ("a/../../x", ""), ("/etc", ""), ("//host/x", ""), ("", ""), (None, ""), ("\\\\host\\x", "")],
)  # fmt: skip
def test_links_stay_inside(path: str | None, link: str) -> None:
    """A link leads to a folder below, or nowhere."""
    assert safe_link(path) == link


def test_reading_survives_a_killed_writer(tmp_path: Path) -> None:
    """Half a line, a list, a number and an empty line: the good rows are kept, the others counted."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n[1]\n7\n{"step": NaN}\n{"st', encoding="utf-8")
    found, broken = read_rows(path)
    assert len(found) == 2
    assert broken == 3
    assert clean({"a\x00": ["\ud800\u202e", 1, None]}) == {"a\ufffd": ["\ufffd\ufffd", 1, None]}


def test_missing_keys_never_crash(tmp_path: Path) -> None:
    """Every key of every level removed in turn, or replaced by null or by text: a page is written each time."""

    def spoilt(value: object, depth: int = 3) -> list[object]:
        """Copies of a mapping, each with one key gone or changed."""
        out: list[object] = []
        if isinstance(value, dict) and depth:
            for key, item in value.items():
                out.append({k: v for k, v in value.items() if k != key})
                out += [{**value, key: other} for other in (None, "text")]
                out += [{**value, key: other} for other in spoilt(item, depth - 1)]
        return out

    from luthier.report.run import _view

    whole = folders.results()
    small = {part: {"reverse": whole[part]["reverse"]} for part in ("tasks", "base", "tuned", "paired")}
    small |= {"cost": {"trainable_parameters": 5}, "calibration": {"sums": {"base": None, "tuned": {"bins": []}}}}
    for results in spoilt(small):
        assert _view(folders.manifest(), results, "", [], 0, [])["verdict"]
    for manifest in spoilt(folders.manifest(), depth=2):
        assert _view(manifest, small, "", [], 0, [])["verdict"]
    for row in ({}, {"step": "x"}, {"step": 1, "loss": "nan"}, {"step": 1, "loss": None}):
        assert _view({}, {}, "results.json is missing", [row], 0, [row])["verdict"]


def test_missing_keys_of_a_comparison(tmp_path: Path) -> None:
    """Each top key gone, nonsense cells, no target: still a page."""
    whole = json.loads(
        (folders.compare_folder(tmp_path / "c", ["full", "lora"], [1, 2]) / "compare.json").read_text(encoding="utf-8")
    )
    cases = [{k: v for k, v in whole.items() if k != key} for key in whole]
    cases += [{**whole, key: None} for key in whole]
    cases += [{**whole, "cells": [{}, None, 3, {"method": "x", "results": {"tuned": 1}}]}]
    for i, case in enumerate(cases):
        folders.put(tmp_path / str(i), "compare.json", case)
        assert not outline(write_compare_report(tmp_path / str(i)).read_text(encoding="utf-8")).problems


def test_pages_say_what_matters(pages: dict[str, str]) -> None:
    """Warnings, failed cells, links and missing measurements are in the text."""
    text = {name: " ".join(" ".join(outline(page).text).split()) for name, page in pages.items()}
    assert "it lost 31 points of Stored facts" in text["normal"]
    assert "This run was interrupted." in text["interrupted"]
    assert "Uncommitted changes." in text["interrupted"]
    assert "310 of 2,000 rows (15.5%) were rejected" in text["interrupted"]
    assert "The training loss broke." in text["sparse"]
    assert "not measured" in text["sparse"]
    assert "This run failed." in text["hostile"]
    assert "The size of tensor a (64)" in text["five"]
    assert "2 of 3" in text["five"]
    assert 'href="runs/full-1/report.html"' in pages["five"]
    assert 'href="runs/dora-2/report.html"' not in pages["five"]
    assert "no difference is claimed" in text["one_seed"]
    assert "is clearly better" not in text["one_seed"]
    assert "Nothing was measured in this run." in text["empty"]
    assert "nothing to compare" in text["empty_compare"]


def test_changes_keep_order_and_group() -> None:
    """Target, retention, drift, other; the main metric first; a task without a group is 'other'."""
    found = changes(folders.results())
    assert [c.group for c in found] == sorted((c.group for c in found), key=("target", "retention", "drift").index)
    assert [(c.metric, c.main) for c in found[:2]] == [("exact_match", True), ("token_accuracy", False)]
    assert changes({"tuned": {"x": {"m": {"value": 1}}}})[0].group == "other"
    assert changes(None) == []
