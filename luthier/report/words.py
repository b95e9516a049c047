"""Words: numbers as a reader says them, and the sentences that a report opens with.

Every sentence is made from the numbers; none is typed in a template. A figure that is missing is 'not measured',
never zero. 'No clear change' means that the test did not find one, and says which size of change it rules out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luthier.report.evidence import Change, Spread, Standing, real

NOT_MEASURED = "not measured"
MINUS = "\u2212"
ACRONYMS = frozenset({"kl", "ece", "f1", "bleu", "rouge", "auc", "mcc", "cot", "wer", "cer", "mrr", "ndcg"})
_STEPS = ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_FLOPS = ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def _digits(value: float, figures: int = 3) -> str:
    """Three significant figures without an exponent between 0.0001 and a million."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.{figures - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    if size >= 10 ** (figures - 1):
        return f"{value:,.0f}".replace("-", MINUS)
    text = f"{value:.{figures}g}"
    if "e" in text:
        text = f"{value:.6f}"
    return text.replace("-", MINUS)


def number(value: Any) -> str:
    """A plain number to three figures."""
    found = real(value)
    return NOT_MEASURED if found is None else _digits(found)


def exact(value: Any) -> str:
    """The unrounded number, for tooltips."""
    found = real(value)
    if found is None:
        return NOT_MEASURED
    return f"{int(found):,}" if found == int(found) and abs(found) < 1e18 else repr(found)


def rate(value: float) -> str:
    """A share with two decimals, or three where two would hide that it is not exactly 0 or 1."""
    text = f"{value:.2f}"
    return f"{value:.3f}" if text in ("0.00", "1.00") and value not in (0.0, 1.0) else text


def value_words(value: float | None, is_rate: bool, unit: str = "") -> str:
    """A measured value with its unit."""
    if value is None:
        return NOT_MEASURED
    return rate(value) if is_rate else f"{_digits(value)} {unit}".strip()


def signed(value: float, is_rate: bool = False) -> str:
    """A difference with its sign."""
    text = (f"{abs(value):.2f}" if abs(value) >= 0.005 else f"{abs(value):.3f}") if is_rate else _digits(abs(value))
    if float(text.replace(",", "").replace(MINUS, "-")) == 0:
        return "0.00" if is_rate else "0"
    return f"{MINUS if value < 0 else '+'}{text}"


def points(value: float) -> str:
    """A difference of shares in hundredths: '31 points', '1 point', '0.4 points'."""
    size = abs(value) * 100
    text = f"{size:.0f}" if size >= 0.95 else f"{size:.1f}"
    return f"{text} point" if text == "1" else f"{text} points"


def _scaled(value: float, steps: Sequence[tuple[float, str]], smallest: str) -> str:
    """The value in the largest unit that keeps it at or above one."""
    for size, name in steps:
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size)} {name}"
    return f"{_digits(value)} {smallest}".strip()


def count(value: Any) -> str:
    """A number of things: 950, 12.3 k, 1.24 M, 7.1 B."""
    found = real(value)
    if found is None:
        return NOT_MEASURED
    return f"{found:,.0f}" if abs(found) < 1e4 and found == int(found) else _scaled(found, _STEPS, "")


def size(value: Any) -> str:
    """A number of bytes in binary units."""
    found = real(value)
    return NOT_MEASURED if found is None else _scaled(found, _BYTES, "bytes")


def flops(value: Any) -> str:
    """A number of floating point operations."""
    found = real(value)
    return NOT_MEASURED if found is None else _scaled(found, _FLOPS, "FLOP")


def duration(value: Any) -> str:
    """Seconds as a person says them: 12 ms, 3.4 s, 2 min 5 s, 3 h 20 min."""
    found = real(value)
    if found is None:
        return NOT_MEASURED
    if found < 1:
        return f"{_digits(found * 1000)} ms"
    if found < 59.95:
        return f"{_digits(found)} s"
    whole = round(found)
    for big, small, many in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= many:
            rest = whole % many // {"h": 3600, "min": 60, "s": 1}[small]
            return f"{whole // many} {big} {rest} {small}" if rest else f"{whole // many} {big}"
    return f"{whole} s"


def percent(part: Any, whole: Any) -> str:
    """A share of a whole: '38%', '0.21%'."""
    a, b = real(part), real(whole)
    if a is None or not b:
        return NOT_MEASURED
    return f"{_digits(100 * a / b)}%"


def p_words(value: float | None) -> str:
    """A p-value; tiny ones as a bound."""
    if value is None:
        return "no test"
    return "<\u00a00.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def metric_words(name: str) -> str:
    """exact_match as 'exact match', kl_from_base as 'KL from base'."""
    parts = [part.upper() if part in ACRONYMS else part for part in name.split("_") if part.strip()]
    return " ".join(parts) or "the metric"


def first_up(text: str) -> str:
    """The text with a capital first letter, the rest untouched."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str], most: int = 0) -> str:
    """'a', 'a and b', 'a, b and c', or 'a, b and 4 more'."""
    shown = list(names)
    if most and len(shown) > most:
        shown = [*shown[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def interval(change: Change) -> str:
    """The interval of the difference: '+0.92 to +0.97'."""
    if change.low is None or change.high is None:
        return ""
    return f"{signed(change.low, change.is_rate)} to {signed(change.high, change.is_rate)}"


def what(change: Change) -> str:
    """The metric and the task: 'exact match on Reverse'."""
    return f"{metric_words(change.metric)} on {change.title}"


def _support(change: Change) -> str:
    """The bracket after a claim: interval of the difference and number of items."""
    parts = []
    if change.low is not None and change.high is not None:
        parts.append(f"95% interval of the difference {interval(change)}")
    if change.n is not None:
        parts.append(f"n={change.n:,}")
    return f" ({', '.join(parts)})" if parts else ""


def _from_to(change: Change) -> str:
    """'from 0.02 to 0.97'."""
    sides = (None if side is None else side.value for side in (change.base, change.tuned))
    before, after = (value_words(value, change.is_rate, change.unit) for value in sides)
    return f"from {before} to {after}"


def target_clause(who: str, change: Change) -> str:
    """What happened to one target: raised, lowered, no clear change, or not measured."""
    if change.tuned is None:
        return f"{what(change)} was not measured after tuning"
    if change.base is None:
        after = value_words(change.tuned.value, change.is_rate, change.unit)
        return f"{who} reached {after} in {what(change)}; the base was not measured, so nothing is compared"
    if change.verdict in ("better", "worse"):
        verb = "raised" if change.tuned.value >= change.base.value else "lowered"
        judged = "" if (verb == "raised") == (change.verdict == "better") else f", which is {change.verdict}"
        return f"{who} {verb} {what(change)} {_from_to(change)}{_support(change)}{judged}"
    if change.verdict == "same":
        return f"{who} made no clear change to {what(change)}: {_from_to(change)}{_support(change)}"
    return f"{who} moved {what(change)} {_from_to(change)}; without a paired test nothing is claimed"


def _loss(change: Change) -> str:
    """A clear retention loss in a few words."""
    if change.is_rate and change.higher_is_better and change.difference is not None:
        return f"lost {points(change.difference)} of {change.title}"
    if not (change.base and change.tuned):
        return f"made {what(change)} worse"
    before, after = (value_words(side.value, change.is_rate, change.unit) for side in (change.base, change.tuned))
    if before == after and change.difference is not None:  # clear, and too small to see
        return f"made {what(change)} worse by {_digits(abs(change.difference))}, from {before}"
    return f"made {what(change)} worse, from {before} to {after}"


def retention_clause(kept: Sequence[Change]) -> str:
    """What tuning cost elsewhere, the largest loss first; silence is never read as 'nothing was lost'."""
    judged = [change for change in kept if change.verdict]
    if not judged:
        seen = any(change.base is not None and change.tuned is not None for change in kept)
        return f"what it cost elsewhere was not {'tested' if seen else 'measured'}"
    lost = sorted((c for c in judged if c.verdict == "worse"), key=lambda c: -abs(c.difference or 0))
    if lost:
        return f"it {listed([_loss(change) for change in lost], most=3)}"
    open_ = f" ({len(kept) - len(judged)} more not tested)" if len(kept) > len(judged) else ""
    if len(judged) == 1:
        return f"no clear loss of {judged[0].title}{open_}"
    return f"no clear loss on the {len(judged)} retention tasks{open_}"


def run_verdict(who: str, found: Sequence[Change], status: str = "done", last_step: int | None = None) -> str:
    """The sentence at the top of a run report."""
    main = [change for change in found if change.main]
    measured = [change for change in main if change.tuned is not None]
    state = {"interrupted": "was interrupted", "failed": "failed", "running": "is still running"}.get(status, "")
    if not measured:
        where = f" after step {last_step:,}" if last_step is not None else ""
        yet = " yet" if status == "running" else ""
        return f"The run {state}{where}; nothing was measured{yet}." if state else "Nothing was measured in this run."
    targets = [change for change in main if change.group == "target"]
    clauses = [target_clause(who if place == 0 else "it", change) for place, change in enumerate(targets[:3])]
    if not targets:
        clauses = ["no target task was measured"]
    if len(targets) > 3:
        clauses.append(f"{len(targets) - 3} more targets are in the table")
    clauses.append(retention_clause([change for change in main if change.group in ("safety", "retention")]))
    sentence = "; ".join(clauses) + "."
    return sentence if sentence.startswith(who) else first_up(sentence)


def _excluded(change: Change) -> str:
    """The harm that a 'no clear change' still leaves possible, so that it is not read as 'no harm'."""
    if change.low is None or change.high is None or change.higher_is_better is None:
        return "No clear change."
    harm = -change.low if change.higher_is_better else change.high
    if harm <= 0:
        return "No clear change."
    amount = points(harm) if change.is_rate else f"{_digits(harm)} {change.unit}".strip()
    return f"No clear change; a loss of more than {amount} is unlikely (95% interval)."


def side_effect(change: Change) -> str:
    """One plain sentence about a retention or drift task."""
    name = metric_words(change.metric)
    if change.tuned is None:
        missing = "before or after" if change.base is None else "after"
        return f"Not measured {missing} tuning, so nothing is compared."
    if change.base is None:
        after = value_words(change.tuned.value, change.is_rate, change.unit)
        return f"{first_up(name)} is {after} after tuning; the base has no value to compare it with."
    if change.verdict == "same":
        return f"{_excluded(change)} {first_up(name)} went {_from_to(change)}."
    if not change.verdict:
        return f"{first_up(name)} went {_from_to(change)}. No paired test, so nothing is claimed."
    if change.is_rate and change.difference is not None:
        gained = "Gained" if change.difference > 0 else "Lost"
        return f"{gained} {points(change.difference)}: {name} {_from_to(change)}{_support(change)}."
    verb = "rose" if change.tuned.value > change.base.value else "fell"
    return f"{first_up(name)} {verb} {_from_to(change)}{_support(change)}."


def base_parameters(cost: Any) -> Any:
    """What shares of parameters are shares of. Older runs tell only the number with what was added."""
    return cost.get("base_parameters", cost.get("total_parameters"))


def cost_sentence(cost: Any) -> str:
    """The price in one line; parts that were not measured are left out."""
    trained, base = real(cost.get("trainable_parameters")), real(base_parameters(cost))
    parts = []
    if trained is not None:
        share = f" ({percent(trained, base)} of {count(base)})" if base else ""
        parts.append(f"trained {count(trained)} parameters{share}")
    if real(cost.get("train_seconds")) is not None:
        parts.append(f"took {duration(cost['train_seconds'])}")
    if real(cost.get("peak_memory_bytes")) is not None:
        parts.append(f"needed {size(cost['peak_memory_bytes'])} at its peak")
    if real(cost.get("stored_bytes")) is not None:
        parts.append(f"stores {size(cost['stored_bytes'])}")
    return f"It {listed(parts)}." if parts else ""


def sd_words(found: Spread, show: Any) -> str:
    """The standard deviation to the decimals of the mean, or one significant figure where those would hide it."""
    if found.sd is None:
        return ""
    decimals = re.search(r"\.(\d+)", show(found.mean))
    text = f"{found.sd:.{len(decimals[1])}f}" if decimals and "e" not in show(found.mean) else show(found.sd)
    hidden = found.sd > 0 and not re.search("[1-9]", text)
    return _digits(found.sd, 1) if hidden else text


def mean_sd(found: Spread, show: Any) -> str:
    """'0.97 ± 0.01', or the single value of one seed."""
    return show(found.mean) if found.sd is None else f"{show(found.mean)} ± {sd_words(found, show)}"


def relative_sd(found: Spread) -> str:
    """The standard deviation of a cost in percent of its mean; nothing where it is below half a percent."""
    if not found.sd or not found.mean:
        return ""
    share = 100 * found.sd / abs(found.mean)
    return f"{share:.0f}%" if share >= 0.5 else ""


def leader_sentence(quality: dict[str, Spread], what_: str, higher: bool, level: Sequence[str], show: Any) -> str:
    """Who leads, and who cannot be told apart from the leader."""
    sign = 1 if higher else -1
    best = max(quality, key=lambda name: sign * quality[name].mean)
    lead = f"{best} has the {'highest' if higher else 'lowest'} {what_}: {mean_sd(quality[best], show)}"
    if len(quality) == 1:
        return f"{best} is the only method with results: {mean_sd(quality[best], show)} in {what_}."
    if max(found.n for found in quality.values()) < 2:
        return f"{lead}, with one seed each, so the noise between seeds is unknown and no difference is claimed."
    if not level:
        return f"{lead}; it is clearly better than all others."
    if len(level) == len(quality) - 1:
        return f"{lead}, but no other method can be told apart from it beyond the noise."
    return f"{lead}; {listed(level, most=4)} cannot be told apart from it beyond the noise."


def front_sentence(
    names: Sequence[str], found: Sequence[Standing], price: str, *, single: bool, brief: bool = False
) -> str:
    """The front in words, honest about overlaps; `brief` leaves out who is behind it."""
    kinds = {kind: [n for n, s in zip(names, found, strict=True) if s.kind == kind] for kind in ("clear", "mean")}
    near = [name for name, standing in zip(names, found, strict=True) if standing.kind == "near"]
    beaten = [
        f"{listed([n for n, s in zip(names, found, strict=True) if s == winner])} (by {winner.by})"
        for winner in dict.fromkeys(standing for standing in found if standing.kind == "beaten")
    ]
    if single:
        front = listed([*kinds["clear"], *kinds["mean"]])
        return f"On the front of quality against {price}, by single values: {front}."
    parts = [f"On the front of quality against {price}: {listed(kinds['clear'])}."] if kinds["clear"] else []
    if kinds["mean"]:
        parts.append(f"On it by mean only, as a method that costs no more is within noise: {listed(kinds['mean'])}.")
    if near and not brief:
        parts.append(f"Behind it, but not clearly beaten: {listed(near)}.")
    if beaten and not brief:
        parts.append(f"Clearly beaten at no more cost: {'; '.join(beaten)}.")
    return " ".join(parts)
