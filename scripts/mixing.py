"""Try every tuner with every objective on every kind of model and record what happened in results/mixing.json.

`--new` tries only what is not recorded yet, and names among the arguments what is tried again: `--new cpt classification`.
"""

from __future__ import annotations

import json
import sys

import torch

from luthier.checks.mixing import WORKS, cells, mix
from luthier.core import catalog, runs


def main() -> int:
    torch.set_num_threads(1)
    file, again = catalog.results_folder() / "mixing.json", set(sys.argv[1:])
    known = json.loads(file.read_text(encoding="utf-8")) if "--new" in again else {}
    told = {
        c.name: known[c.name] if c.name in known and not {c.tuner, c.objective} & again else mix(c) for c in cells()
    }
    runs.write_json(file, told)
    works = sum(v == WORKS for v in told.values())
    print(f"{len(told)} cells: {works} train, {len(told) - works} are refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
