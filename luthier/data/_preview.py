"""What the model will see: decoded tokens, trained or not, and the report. In colour, or in plain text with brackets.

Plain form: [[trained]] and not trained; a line break is shown as \\n before the real one, so that a trained line break
is visible. Special tokens appear as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from luthier.core.batch import (
    IGNORED,
    Example,
    GroupExample,
    LabelledExample,
    SearchExample,
    TaggedExample,
    TextExample,
)
from luthier.data._prepare import Prepared, Report, trained

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Part = tuple[str, bool]  # decoded text, trained


def parts(example: Example, tokenizer: Any, names: Sequence[str] = ()) -> list[tuple[str, list[Part]]]:
    """Named pieces of an example, each as runs of trained and not trained text. `names` are those of its classes."""
    if isinstance(example, TaggedExample):
        return [("", _tagged(example, tokenizer, names))]
    if isinstance(example, TextExample):
        return [("", _runs(example.ids, example.counts, tokenizer))]
    if isinstance(example, GroupExample):
        n = len(example.answers)
        names = ["chosen", "rejected"] if n == 2 else [f"answer {k + 1}" for k in range(n)]
        if example.scores is not None:
            names = [f"{name} (score {score:g})" for name, score in zip(names, example.scores)]
        answers = [(name, [(_decode(a, tokenizer), True)]) for name, a in zip(names, example.answers)]
        return [("prompt", [(_decode(example.prompt, tokenizer), False)]), *answers]
    if isinstance(example, LabelledExample):
        return [("text", [(_decode(example.ids, tokenizer), False)]), ("label", [(str(example.label), True)])]
    if isinstance(example, SearchExample):
        names = ["positive", *(f"negative {k}" for k in range(1, len(example.documents)))]
        said = [(name, [(_decode(d, tokenizer), False)]) for name, d in zip(names, example.documents)]
        return [("query", [(_decode(example.query, tokenizer), False)]), *said] if example.query else said
    return [
        ("source", [(_decode(example.ids, tokenizer), False)]),
        ("target", [(_decode(example.target, tokenizer), True)]),
    ]


def _runs(ids: Sequence[int], counts: Sequence[bool], tokenizer: Any) -> list[Part]:
    """Neighbours of one kind are decoded together: a character may be spread over several tokens."""
    runs = groupby(zip(ids, counts), key=lambda pair: pair[1])
    return [(_decode([i for i, _ in run], tokenizer), on) for on, run in runs]


def _tagged(example: TaggedExample, tokenizer: Any, names: Sequence[str]) -> list[Part]:
    """Tokens that have a class one by one, with its name; what lies between them as one run."""
    runs: list[Part] = []
    for tag, run in groupby(zip(example.ids, example.tags), key=lambda pair: pair[1]):
        ids = [i for i, _ in run]
        if tag == IGNORED:
            runs.append((_decode(ids, tokenizer), False))
        else:
            name = names[tag] if names else str(tag)
            runs += [(f"{_decode([i], tokenizer)}/{name}", True) for i in ids]
    return runs


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _title(prepared: Prepared, k: int) -> str:
    example = prepared.examples[k]
    parts_ = [f"example {k}", prepared.origins[k], f"{len(example)} tokens"]
    if isinstance(example, SearchExample):
        parts_.append(f"{len(example.documents)} documents")
    elif not isinstance(example, LabelledExample):
        parts_.append(f"{trained(example)} trained")
    elif prepared.report.label_names and isinstance(example.label, int):
        parts_.append(f"label {prepared.report.label_names[example.label]}")
    return ", ".join(parts_)


def preview_text(prepared: Prepared, tokenizer: Any, n: int = 3, report: bool = True) -> str:
    """The plain form, for terminals without colour, files and tests."""
    lines = []
    for k in range(min(n, len(prepared))):
        lines.append(f"--- {_title(prepared, k)}")
        for name, runs in parts(prepared.examples[k], tokenizer, prepared.report.label_names or ()):
            text = "".join(f"[[{_shown(t)}]]" if on else _shown(t) for t, on in runs)
            lines.append(f"{name}: {text}" if name else text)
    if report:
        lines += ["--- report", *(f"{name}: {value}" for name, value in report_lines(prepared.report))]
    return "\n".join(lines)


def _shown(text: str) -> str:
    return text.replace("\n", "\\n\n")


def preview(prepared: Prepared, tokenizer: Any, n: int = 3) -> Group:
    """The same for a rich console: trained text stands out in green, the rest is dim."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    panels: list[Any] = []
    for k in range(min(n, len(prepared))):
        body = Text()
        for name, runs in parts(prepared.examples[k], tokenizer, prepared.report.label_names or ()):
            if name:
                body.append(f"{name}\n" if not body else f"\n{name}\n", style="bold")
            for text, on in runs:
                _paint(body, text, on, tokenizer)
        panels += [Text(_title(prepared, k), style="bold"), Panel(body)]
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in report_lines(prepared.report):
        table.add_row(Text(name, style="bold"), Text(value))
    legend = Text.assemble(("trained", "bold green"), "  ", ("not trained", "dim"), "  ", ("special token", "reverse"))
    return Group(*panels, legend, table)


def _paint(body: Text, text: str, on: bool, tokenizer: Any) -> None:
    style = "bold green" if on else "dim"
    start = len(body)
    body.append(text.replace("\n", "↵\n"), style=style)
    added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    for special in dict.fromkeys([*tokenizer.all_special_tokens, *added]):
        at = body.plain.find(special, start)
        while at >= 0:
            body.stylize("reverse", at, at + len(special))
            at = body.plain.find(special, at + len(special))


def report_lines(report: Report) -> list[tuple[str, str]]:
    """The report, one (name, value) a line; what did not happen is left out."""
    lines = [
        ("type", f"{report.type} ({report.why})"),
        ("rows", f"{report.rows_found} found, {report.examples} examples, {len(report.rejected)} rejected"
                 + (f", {report.rows_left_out} left out by sampling or limit" if report.rows_left_out else "")),
        ("tokens", f"{report.tokens}" + (f", {report.trained_tokens} trained" if report.trained_tokens else "")),
        ("length", ", ".join(f"{k} {v:g}" for k, v in report.lengths.items())),
        ("template", report.template),
    ]  # fmt: skip
    limit = report.options.get("max_length")
    if report.truncated:
        words = f"{report.truncated} examples cut to max_length {limit}"
        lost = f", {report.answers_cut} of them lost trained tokens" if report.answers_cut else ""
        lines.append(("truncated", words + lost))
    lines += [(f"{low}-{high} tokens", f"{n} {'#' * _bar(n, report)}".rstrip()) for low, high, n in report.histogram]
    lines += [("note", f"{n} rows: {mark}") for mark, n in report.marks.items()]
    lines += [("note", note) for note in report.notes]
    if report.label_names:
        counts = report.label_counts
        labels = ", ".join(f"{i} = {n} ({counts.get(n, 0)})" for i, n in enumerate(report.label_names))
        lines.append(("labels", labels))
    lines += [("rejected", f"{r.origin}: {r.reason}") for r in report.rejected[:5]]
    if len(report.rejected) > 5:
        lines.append(("rejected", f"... and {len(report.rejected) - 5} more"))
    if report.cache:
        lines.append(("cache", f"{'reused' if report.cache['reused'] else 'written'} {report.cache['path']}"))
    lines.append(("sha256", report.sha256[:16]))
    return lines


def _bar(n: int, report: Report) -> int:
    top = max(h[2] for h in report.histogram)
    return -(-20 * n // top) if top else 0
