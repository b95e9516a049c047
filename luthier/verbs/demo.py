"""`luthier demo`: several ways of tuning an embedded model, compared offline on a laptop in about two minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier.core import catalog
from luthier.verbs.compare import Comparison, compare


def demo(folder: str | Path = "runs/demo", quiet: bool = False) -> Comparison:
    """Run configs/demo.yaml into `folder` (an older demo there is replaced)."""
    folder = Path(folder)
    if (folder / "compare.json").exists():
        shutil.rmtree(folder)
    return compare(catalog.configs_folder() / "demo.yaml", quiet=quiet, output_dir=folder)
