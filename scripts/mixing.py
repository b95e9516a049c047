"""Try every tuner with every objective on every kind of model and record what happened in results/mixing.json."""

from __future__ import annotations

import sys

import torch

from luthier.checks.mixing import WORKS, cells, mix
from luthier.core import catalog, runs


def main() -> int:
    torch.set_num_threads(1)
    told = {cell.name: mix(cell) for cell in cells()}
    runs.write_json(catalog.results_folder() / "mixing.json", told)
    works = sum(v == WORKS for v in told.values())
    print(f"{len(told)} cells: {works} train, {len(told) - works} are refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
