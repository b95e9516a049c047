"""What procedures of several stages share."""

from __future__ import annotations

from pathlib import Path


def resumed(folder: str | Path, asked: bool | str | None) -> bool | str | None:
    """`asked` for a stage that had begun when the procedure was stopped; None for one that had not."""
    return asked if (Path(folder) / "run.json").exists() else None
