"""`luthier data preview`: what the model will see, and which of it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core import config


def preview(recipe: str | Path | Mapping[str, Any], rows: int = 3, overrides: Mapping[str, Any] | None = None) -> None:
    """Print the first `rows` examples in colour (marks where there is no colour) with the length report."""
    from rich.console import Console

    from luthier import data
    from luthier.verbs.run import _rows, _tokenizer

    told = config.recipe(recipe, overrides)
    tokenizer = _tokenizer(told)
    prepared = _rows(told, tokenizer, None)
    console = Console()
    if console.is_terminal:
        console.print(data.preview(prepared, tokenizer, rows))
    else:
        print(data.preview_text(prepared, tokenizer, rows))
