"""Functions that a recipe names: rewards, judges, translators, generators."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError


def function_named(name: str, key: str, else_: str = "", raises: type[Exception] = LuthierError) -> Callable[..., Any]:
    """The function that `key` names as module:function, the module by its name or as a .py file.

    Raises `raises` in one line where there is none; `else_` are other ways to write it.
    """
    home, _, attribute = name.rpartition(":")
    form = f"write module:function{else_}"
    if not home:
        raise raises(f"{key} '{name}': {form}")
    try:
        if home.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(home).stem, home)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(home)
        found: Callable[..., Any] = getattr(module, attribute)
    except (ImportError, FileNotFoundError, AttributeError, ValueError) as error:
        raise raises(f"{key} '{name}' cannot be loaded: {error}: {form}") from error
    if not callable(found):
        raise raises(f"{key} '{name}' is no function: {form}")
    return found
