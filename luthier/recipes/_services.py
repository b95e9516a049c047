"""Generators, translators and rankers as services: any function, by name, with cache, retries, costs and a version.

    module:function          any Python function; `module` may be a file, path/to/file.py

Arguments and answers are plain values (what JSON holds). An answer is kept in a file by the function's version and its
arguments, and not asked for again, also where a run was stopped. A function of a remote model tells what it spends by a
number `cost` that it counts up on itself, and its version by a text `version`; without one it is its source's hash.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError


class Service:
    """A function that is asked once for each thing. `asked`, `kept` and `retried` count calls."""

    def __init__(self, name: str, function: Callable[..., Any], file: Path, retries: int = 3, wait: float = 1.0):
        self.name, self.function, self.file, self.retries, self.wait = name, function, file, retries, wait
        self.asked = self.kept = self.retried = 0
        self.version = str(getattr(function, "version", "")) or _source(function)
        self.answers: dict[str, Any] = {}
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            self.answers = {told["key"]: told["answer"] for told in map(json.loads, lines)}

    def __call__(self, *arguments: Any) -> Any:
        """Raises LuthierError where every attempt failed."""
        told = json.dumps([self.version, *arguments], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()
        if key in self.answers:
            self.kept += 1
            return self.answers[key]
        answer = json.loads(json.dumps(self._tried(arguments)))  # the same whether it was kept or not
        self.answers[key] = answer
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
        return answer

    def _tried(self, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(self.retries):
            self.asked += 1
            try:
                return self.function(*arguments)
            except Exception as error:  # whatever a client of a remote model raises
                if attempt + 1 == self.retries:
                    raise LuthierError(f"{self.name} failed {self.retries} times: {error}") from error
                self.retried += 1
                time.sleep(self.wait * 2**attempt)
        raise AssertionError

    def told(self) -> dict[str, Any]:
        """What it was and what it cost."""
        spent = getattr(self.function, "cost", None)
        return {
            "name": self.name, "version": self.version, "asked": self.asked, "from_cache": self.kept,
            "retried": self.retried, "cost": spent,
        }  # fmt: skip


def _source(function: Callable[..., Any]) -> str:
    """The hash of the file that a function is in."""
    module = inspect.getsourcefile(function)
    return hashlib.sha256(Path(module).read_bytes() if module else b"").hexdigest()[:12]
