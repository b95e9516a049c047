"""What is generated is as the code says today; what documents name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_readme_is_not_stale() -> None:
    done = subprocess.run([sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "README.md is stale: run `make docs`"


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert ((ROOT / document).parent / target).exists(), target


def test_nothing_names_a_machine() -> None:
    names = [str(ROOT) + "/", str(Path.home()) + "/"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for file in listed:
        path = ROOT / file
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".json", ".j2", "") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(n in text for n in names), file
