"""Write the generated parts of README.md: the catalogue, and what was measured. `--check` only says whether they are stale."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from luthier.core import catalog

ROOT = Path(__file__).parent.parent


def catalogue() -> str:
    """Methods by axis with status and paper."""
    rows = catalog.listing()
    out = []
    for axis in dict.fromkeys(r["axis"] for r in rows):
        out += [f"**{axis}**", "", "| name | what it does | paper | status | checks |", "|---|---|---|---|---|"]
        for r in (r for r in rows if r["axis"] == axis):
            what = r["title"].split(": ", 1)[-1].rstrip(".")
            out.append(
                f"| `{r['name']}` | {what} | {r['paper']} | {r['status']} | {r['checks_run']} of {r['checks_expected']} |"
            )
        out.append("")
    states = [c["status"] for c in catalog.cards()]
    told = ", ".join(f"{states.count(s)} {s}" for s in reversed(catalog.STATUSES) if states.count(s))
    return "\n".join([*out, f"Of 69 papers: {told}."])


def measured() -> str:
    """Reproductions, real data and benchmarks that have result files."""
    out = []
    for file in sorted(catalog.results_folder().glob("*/*.json")):
        told = json.loads(file.read_text())
        if told.get("verdict"):
            out.append(
                f"- **{told['method']}**, {told['verdict']}: {told['summary']} (`{told['manifest']['command']}`)"
            )
    for file in sorted((catalog.results_folder() / "real").glob("*.json")):
        told = json.loads(file.read_text())
        if told.get("summary"):
            out.append(f"- **{file.stem}** on real data: {told['summary']}")
    bench = ROOT / "benchmarks" / "results.json"
    if bench.exists():
        out += ["", *_benchmarks(json.loads(bench.read_text()))]
    return "\n".join(out) or "Nothing yet."


def _benchmarks(told: dict[str, Any]) -> list[str]:
    sys.path.insert(0, str(ROOT))
    from benchmarks.run import table

    return [table(told)]


def filled(text: str) -> str:
    """README with its generated parts replaced."""
    for name, body in (("catalogue", catalogue()), ("measured", measured())):
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->",
            lambda _, n=name, b=body: f"<!-- {n} -->\n{b}\n<!-- /{n} -->",
            text,
            flags=re.S,
        )
    return text


def main() -> int:
    """0 if README.md is as it should be (or was written), 1 if `--check` finds it stale."""
    file = ROOT / "README.md"
    old = file.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv:
        return int(old != new)
    file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
