"""Every tuner with every objective on every kind of model: the record has all cells, and they are as it says."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import torch

from luthier.checks.mixing import WORKS, Cell, cells, mix
from luthier.core import catalog

torch.set_num_threads(1)
CELLS = cells()
RECORD: dict[str, Any] = json.loads((catalog.results_folder() / "mixing.json").read_text(encoding="utf-8"))
SOME = [c for c in CELLS if zlib.crc32(c.name.encode()) % 16 == 0]


def test_no_cell_is_missing() -> None:
    assert [c.name for c in CELLS] == list(RECORD), "record the cells again: python scripts/mixing.py"
    assert len(CELLS) == len(set(CELLS))


def agrees(cell: Cell) -> None:
    told = mix(cell)
    assert told == RECORD[cell.name], f"{cell.name}: {told}"


@pytest.mark.parametrize("cell", SOME, ids=[c.name for c in SOME])
def test_cell(cell: Cell) -> None:
    agrees(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [c for c in CELLS if c not in SOME], ids=[c.name for c in CELLS if c not in SOME])
def test_the_other_cells(cell: Cell) -> None:
    agrees(cell)


def test_every_method_works_somewhere() -> None:
    for axis in ("tuner", "objective"):
        for name in {getattr(c, axis) for c in CELLS}:
            assert any(RECORD[c.name] == WORKS for c in CELLS if getattr(c, axis) == name), name
