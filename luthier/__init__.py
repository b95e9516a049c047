"""luthier: tune language models with published methods, compared honestly on your own model and data.

Light to import. What needs torch is loaded on first use; if peft is imported (before or after this package), luthier's
tuner types register with it, so that `PeftModel.from_pretrained` knows them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "run": "luthier.verbs.run",
    "compare": "luthier.verbs.compare",
    "plan": "luthier.verbs.plan",
    "demo": "luthier.verbs.demo",
    "evaluate": "luthier.verbs.evaluate",
    "shift": "luthier.verbs.shift",
    "generate": "luthier.verbs.generate",
    "merge": "luthier.verbs.merge",
    "edit": "luthier.verbs.edit",
    "reproduce": "luthier.verbs.reproduce",
    "load": "luthier.verbs.load",
}
__all__ = ["__version__", *sorted(_VERBS)]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute '{name}'")


class _WhenPeftIsImported(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Runs the registration right after peft's own import, and never again.

    Asking whether peft could be imported (transformers does) is not importing it: only the import itself takes this away.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != "peft":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # type: ignore[union-attr]
        sys.meta_path.remove(self)
        self.loader.exec_module(module)
        _register()


def _register() -> None:
    if "luthier.core.adapt" not in sys.modules:  # else it is being imported and registers by itself
        importlib.import_module("luthier.core.adapt")


if "peft" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenPeftIsImported())
