"""Data: where batches come from.

    read(source)            files, folders, hub ids, sandbox worlds  ->  RowTable (rows, origins, rejected rows, hash)
    detect(columns)         column names  ->  (type, why); an error where they do not settle it
    split(table, val_size)  a seeded split in which no group is on both sides; `overlap` looks for leaks
    prepare(source=...)     rows  ->  Prepared (examples, lengths, report), cached on disk
    preview(prepared, ...)  what the model will see, and which of it is trained

The path of a row: `_reading.py` reads it, `_legacy.py` converts older formats, `_detection.py` names its type, the
file of that type (`chat.py`, `preference.py`, ...) says which text is trained, `_templates.py` renders and
`_tokens.py` makes it tokens. Importing this package imports none of them: each loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.data._detection import detect, row_types
    from luthier.data._prepare import Prepared, Report, prepare
    from luthier.data._preview import preview, preview_text
    from luthier.data._reading import RowTable, read
    from luthier.data._splits import LeakWarning, Overlap, overlap, split

_HOMES = {
    "RowTable": "_reading",
    "read": "_reading",
    "detect": "_detection",
    "row_types": "_detection",
    "Prepared": "_prepare",
    "Report": "_prepare",
    "prepare": "_prepare",
    "preview": "_preview",
    "preview_text": "_preview",
    "LeakWarning": "_splits",
    "Overlap": "_splits",
    "overlap": "_splits",
    "split": "_splits",
}

__all__ = [
    "LeakWarning",
    "Overlap",
    "Prepared",
    "Report",
    "RowTable",
    "detect",
    "overlap",
    "prepare",
    "preview",
    "preview_text",
    "read",
    "row_types",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
