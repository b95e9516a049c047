"""QuixBugs as rows: a faulty program, its repair, the reason for it, and the last of its test cases.

    python scripts/quixbugs.py FOLDER OUT      FOLDER: the benchmark; OUT: train.jsonl and test.jsonl go there

A row has prompt, repair, guided_repair, tests, name. Every fourth program, by name, is a test row. The reason is read off the
one line that differs. Programs without a file of test cases are left out. The texts in the data that describe a program are
not part of the prompt.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Any

TESTS = 5
"""Test cases of a program that are kept."""
PLAIN = (
    "plain = lambda v: [plain(x) for x in v] if isinstance(v, (list, tuple, set)) or hasattr(v, '__next__') else v\n"
)
"""Generators and tuples as lists, as the benchmark's cases have them."""


def program(path: Path) -> str:
    """The code of a file, without the text that describes it."""
    code = path.read_text(encoding="utf-8")
    return re.sub(r'""".*?"""', "", code, flags=re.DOTALL).strip() + "\n"


def reason(faulty: str, right: str) -> str:
    """What must change, line by line."""
    a, b = faulty.splitlines(), right.splitlines()
    said = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        old, new = (" / ".join(line.strip() for line in part if line.strip()) for part in (a[i:j], b[k:m]))
        if old and new:
            said.append(f"line {i + 1} says `{old}` where it needs `{new}`")
        elif old or new:
            said.append(f"`{old}` must go" if old else f"`{new}` is missing after line {i}")
    return "; ".join(said)


def row(folder: Path, name: str) -> dict[str, Any]:
    faulty, right = (program(folder / part / f"{name}.py") for part in ("python_programs", "correct_python_programs"))
    cases = [json.loads(line) for line in (folder / "json_testcases" / f"{name}.json").read_text().splitlines() if line]
    called = [(given if isinstance(given, list) else [given], wanted) for given, wanted in cases]
    tests = [f"{PLAIN}assert plain({name}(*{given!r})) == plain({wanted!r})" for given, wanted in called]
    return {
        "name": name,
        "prompt": f"{faulty}\n# fix\n",
        "repair": right,
        "guided_repair": f"{right}# because {reason(faulty, right)}\n",
        "tests": tests[-TESTS:],
    }


def write(folder: Path, out: Path) -> None:
    names = sorted(p.stem for p in (folder / "json_testcases").glob("*.json"))
    out.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("train", [n for i, n in enumerate(names) if i % 4]), ("test", names[::4])):
        lines = [json.dumps(row(folder, n)) + "\n" for n in chosen]
        (out / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
