"""`luthier list` and `luthier show`, read from files: no model library is imported."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

from luthier.core import catalog


def _table(title: str, columns: list[str], rows: list[list[str]], wrapped: int) -> None:
    """Aligned columns; column `wrapped` takes the width that is left and wraps. (rich would cost the start-up time.)"""
    widths = [max(len(r[i]) for r in [columns, *rows]) for i in range(len(columns))]
    used = sum(w for i, w in enumerate(widths) if i != wrapped) + 2 * (len(columns) - 1)
    widths[wrapped] = max(24, min(widths[wrapped], shutil.get_terminal_size((120, 24)).columns - used))
    print(title)
    for row in [columns, *rows]:
        lines = textwrap.wrap(row[wrapped], widths[wrapped]) or [""]
        for k, line in enumerate(lines):
            cells = [line if i == wrapped else row[i] if k == 0 else "" for i in range(len(row))]
            print("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    print()


def print_methods(rows: list[dict[str, Any]]) -> None:
    """All methods by axis: name, status with checks, what it does, paper."""
    for axis in dict.fromkeys(r["axis"] for r in rows):
        mine = [r for r in rows if r["axis"] == axis]
        body = [
            [
                r["name"],
                f"{r['status']} {r['checks_run']}/{r['checks_expected']}",
                r["title"].split(": ", 1)[-1],
                r["paper"],
            ]
            for r in mine
        ]
        _table(f"{axis.upper()} ({len(mine)})", ["name", "status", "what it does", "paper"], body, wrapped=2)


def print_cards(rows: list[dict[str, Any]]) -> None:
    """All papers: number, status, title, parts."""
    body = [[str(r["card"]), r["status"], r["title"], ", ".join(r["parts"])] for r in rows]
    _table("PAPERS", ["card", "status", "title", "parts"], body, wrapped=2)


def story(name: str) -> str:
    """Everything about one method as text."""
    one = catalog.find(name)
    state = catalog.status(one)
    lines = [f"{one.axis}/{one.name}", "", one.header, ""]
    if one.capabilities:
        lines.append(f"can:      {', '.join(one.capabilities)}")
    lines.append(f"cards:    {', '.join(map(str, one.cards)) or 'none'}")
    lines.append(f"status:   {state['status']} ({state['checks_run']} of {state['checks_expected']} checks passed)")
    if state["oracles"]:
        lines.append(f"agrees:   {', '.join(state['oracles'])}")
    lines += [f"fails:    {check}: {reason}" for check, reason in one.known_failures.items()]
    result = catalog.result_file(one)
    if result.exists():
        told = json.loads(result.read_text())
        lines += ["", f"measured: {told['verdict']}: {told['summary']}"]
    if one.config is not None:
        lines += ["", f"recipe ({one.config.name}):", "", one.config.read_text(encoding="utf-8").rstrip()]
    return "\n".join(lines)
