"""What the catalogue knows of a source file, from its syntax tree: nothing is imported.

Parsing is slower than all else that a listing does, so what was read is kept in the user's cache folder under the file's
stamp (times of change and size). Losing or being unable to write that cache costs time only.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
TOLD = ("paper", "cards", "capabilities", "known_failures")
"""Class attributes that are read: literals, or a frozenset of one."""
SETTLED_SECONDS = 2.0
"""A file changed more recently than this is read each time: a second change may leave its stamp as it is."""

Facts = dict[str, Any]
"""Of one file, as plain JSON: stamp, digest, header, classes {name: {bases, told}}, family (files of an axis it imports)."""


def cache_folder() -> Path:
    """LUTHIER_CACHE, or the user's cache folder."""
    base = os.environ.get("LUTHIER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "luthier"
    return Path(base)


class Sources:
    """Facts by path, filled as they are asked for, from the cache where the stamp is still that of the file."""

    def __init__(self) -> None:
        self.file = (
            cache_folder() / "catalog" / f"{_hash(str(PACKAGE).encode() + Path(__file__).read_bytes())[:16]}.json"
        )
        self.known: dict[str, Facts] = {}
        self.new = False
        with contextlib.suppress(OSError, ValueError):  # no cache, or one that is broken: files are read
            self.known = json.loads(self.file.read_text(encoding="utf-8"))

    def __getitem__(self, path: Path) -> Facts:
        at = os.stat(path)
        key, stamp = str(path), [at.st_mtime_ns, at.st_ctime_ns, at.st_size]
        found = self.known.get(key)
        if found is not None and found["stamp"] == stamp:
            return found
        found = {"stamp": stamp, **read(path)}
        if time.time() - max(at.st_mtime, at.st_ctime) > SETTLED_SECONDS:
            self.known[key] = found
            self.new = True
        return found

    def keep(self) -> None:
        """Write what is new, atomically. Files that are gone are dropped."""
        if not self.new:
            return
        self.new = False
        text = json.dumps({p: f for p, f in self.known.items() if os.path.exists(p)})
        part = self.file.with_name(f".part-{os.getpid()}-{self.file.name}")
        with contextlib.suppress(OSError):  # a cache folder that cannot be written
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            try:
                part.replace(self.file)
            finally:
                part.unlink(missing_ok=True)


def read(path: Path) -> Facts:
    """Everything but the stamp."""
    raw = path.read_bytes()
    tree = ast.parse(raw, str(path))
    return {
        "digest": _hash(raw),
        "header": ast.get_docstring(tree) or "",
        "classes": {
            node.name: {"bases": _bases(node), "told": _told(node)}
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        },
        "family": sorted(_family(tree, path)),
    }


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _bases(node: ast.ClassDef) -> list[str]:
    return [b.id if isinstance(b, ast.Name) else b.attr for b in node.bases if isinstance(b, ast.Name | ast.Attribute)]


def _told(node: ast.ClassDef) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            name, value = item.target.id, item.value
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            name, value = item.targets[0].id, item.value
        else:
            continue
        if name not in TOLD:
            continue
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "frozenset":
            value = value.args[0] if value.args else ast.Tuple([], ast.Load())
        try:
            literal = ast.literal_eval(value)
        except ValueError:  # an expression: only the module itself knows it
            continue
        out[name] = sorted(literal) if isinstance(literal, set) else literal
    return out


def _family(tree: ast.Module, path: Path) -> set[str]:
    """Paths of the family files (luthier/<axis>/_<name>.py) that the file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = "luthier." + path.parent.name if node.level else ""
            whole = ".".join(p for p in (within, node.module) if p)
            modules |= {whole, *(f"{whole}.{a.name}" for a in node.names)}
    told = [m.split(".") for m in modules]
    files = [PACKAGE / m[1] / f"{m[2]}.py" for m in told if len(m) == 3 and m[0] == "luthier" and m[2].startswith("_")]
    return {str(f) for f in files if f.exists()}
