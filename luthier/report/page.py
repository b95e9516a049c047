"""Page: reading a folder, rendering a template, writing the file; the parts that both reports share.

Everything that is read is cleaned once, here: control characters and broken surrogates become visible replacements, so
that no sample can break the file. Escaping is left to the templates and to `charts.el`. The page forbids itself every
load and every script but its own (a content security policy with the hash of that script).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.report.evidence import mapping, real, rows
from luthier.report.words import NOT_MEASURED, count, duration, exact, size

Size = tuple[float, float]
TEMPLATES = Path(__file__).parent / "templates"
# Control characters, broken surrogates, and the direction overrides that could make a page read backwards.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(value: Any) -> Any:
    """The same JSON value with unprintable characters of all its text replaced."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def read_json(path: Path) -> tuple[Mapping[str, Any], str]:
    """The file's mapping and '', or an empty mapping and what was wrong with it."""
    if not path.is_file():
        return {}, f"{path.name} is missing"
    try:
        return mapping(clean(json.loads(path.read_text(encoding="utf-8", errors="replace")))), ""
    except ValueError:
        return {}, f"{path.name} is not readable as JSON"


def read_rows(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The rows of a JSON-lines file, and how many lines were unreadable (a killed run cuts its last line)."""
    if not path.is_file():
        return [], 0
    found, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = clean(json.loads(line))
        except ValueError:
            row = None
        if isinstance(row, Mapping):
            found.append(row)
        else:
            broken += 1
    return found, broken


def read_metrics(folder: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The rows of metrics.jsonl, and how many lines were unreadable."""
    return read_rows(folder / "metrics.jsonl")


def series(found: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of one metric; a value that is present but not finite becomes NaN, so that it stays visible."""
    points = []
    for row in found:
        step, value = real(row.get("step")), row.get(key)
        if step is None or key not in row or not (value is None or isinstance(value, int | float)):
            continue
        found_value = real(value)
        points.append((step, math.nan if found_value is None else found_value))
    return points


def write_atomically(path: Path, content: bytes) -> Path:
    """Write beside the target and rename, so that a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def render(template: str, view: Mapping[str, Any]) -> str:
    """The page of a template, everything escaped, with style and script inside."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    script = loader.get_source(environment, "script.html.j2")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(loader.get_source(environment, "style.html.j2")[0]), "script": Markup(script)}
    return environment.get_template(template).render(**view, **own, script_hash=digest)


def write_page(folder: Path, template: str, view: Mapping[str, Any]) -> Path:
    """Render into report.html of the folder."""
    return write_atomically(folder / "report.html", render(template, view).encode("utf-8"))


def banner(kind: str, title: str, text: str) -> dict[str, str]:
    """A line above everything else. kind: bad, warn or note."""
    return {"kind": kind, "title": title, "text": text}


def gravest_first(banners: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """bad before warn before note, otherwise in order."""
    return sorted(banners, key=lambda one: ("bad", "warn", "note").index(one["kind"]))


def state_banners(manifest: Mapping[str, Any], noun: str) -> list[dict[str, str]]:
    """What the reader must know before any number: unfinished, failed, not repeatable from the commit."""
    status, found = manifest.get("status"), []
    if status == "failed":
        why = str(manifest.get("error") or "").strip()
        tail = f" {why}" if why else ""
        found.append(banner("bad", f"This {noun} failed.", f"The page shows what it measured before it stopped.{tail}"))
    elif status == "interrupted":
        found.append(banner("warn", f"This {noun} was interrupted.", "The numbers describe an unfinished state."))
    elif status == "running":
        found.append(
            banner("note", f"This {noun} is still running.", "The page shows what there was when it was made.")
        )
    git = mapping(manifest.get("git"))
    if git.get("dirty"):
        commit = str(git.get("commit") or "unknown")[:12]
        found.append(
            banner(
                "warn", "Uncommitted changes.", f"The code differed from commit {commit}, which alone cannot repeat it."
            )
        )
    return found


def show_value(value: Any) -> str:
    """A manifest value as text; nothing as 'not recorded'."""
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show_value(item)}" for key, item in value.items()) or "not recorded"
    if isinstance(value, list):
        return ", ".join(show_value(item) for item in value) or "none"
    return str(value)


def _yaml(recipe: Any) -> str:
    """The resolved recipe as YAML in its own order."""
    import yaml

    if not mapping(recipe):
        return ""
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)


def _facts(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """What ran, on what, from what, to what."""
    base, artefact = mapping(manifest.get("base")), mapping(manifest.get("artefact"))
    git = mapping(manifest.get("git"))
    made = f"{artefact.get('kind', 'file')} {artefact.get('path', '')}".strip() if artefact else "not recorded"
    if real(artefact.get("bytes")) is not None:
        made += f", {size(artefact['bytes'])}"
    model = show_value(base.get("name"))
    if real(base.get("parameters")) is not None:
        model += f", {count(base['parameters'])} parameters"
    pairs = [
        ("Base model", model, str(base.get("sha256") or "")),
        ("Result", made, str(artefact.get("sha256") or "")),
        ("Seeds", show_value(manifest.get("seeds")), ""),
        ("Device", _device(manifest.get("device")), ""),
        (
            "Code",
            "not recorded" if not git else "uncommitted changes" if git.get("dirty") else "clean commit",
            str(git.get("commit") or ""),
        ),
        ("luthier", show_value(manifest.get("luthier")), ""),
    ]
    if manifest.get("kind") == "compare" and not artefact:
        pairs = [pair for pair in pairs if pair[0] != "Result"]
    return [{"name": name, "value": value, "hash": digest} for name, value, digest in pairs]


def _device(device: Any) -> str:
    """The device's name, then whatever else was recorded of it."""
    found = mapping(device)
    rest = {key: value for key, value in found.items() if key != "name"}
    parts = [show_value(item) for item in (found.get("name"), rest) if item]
    return ", ".join(parts) or show_value(device or None)


def _share(part: Any, whole: Any) -> str:
    """' (3%)' where the share is known and not zero."""
    a, b = real(part), real(whole)
    return f" ({100 * a / b:.1f}%)" if a and b else ""


def _data(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The data table: what came in, what was rejected, what was cut short."""
    return [
        {
            "name": show_value(entry.get("name")),
            "source": show_value(entry.get("source")),
            "rows": _counted(entry.get("rows")),
            "rejected": _counted(entry.get("rejected")) + _share(entry.get("rejected"), entry.get("rows")),
            "truncated": _counted(entry.get("truncated")) + _share(entry.get("truncated"), entry.get("rows")),
            "hash": str(entry.get("sha256") or ""),
        }
        for entry in rows(manifest.get("data"))
    ]


def _counted(value: Any) -> str:
    """An exact count, or 'not recorded'."""
    return "not recorded" if real(value) is None else exact(value)


def repeat_view(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to do it again."""
    return {
        "command": str(manifest.get("command") or ""),
        "recipe": _yaml(manifest.get("recipe")),
        "facts": _facts(manifest),
        "versions": [(str(key), show_value(value)) for key, value in mapping(manifest.get("versions")).items()],
        "data": _data(manifest),
    }


def rejection_banners(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """A warning for each data set of which a twentieth or more did not reach training whole."""
    found = []
    for entry in rows(manifest.get("data")):
        total = real(entry.get("rows"))
        for key, verb in (("rejected", "were rejected"), ("truncated", "were cut short")):
            part = real(entry.get(key))
            if part and total and part / total >= 0.05:
                text = f"{exact(part)} of {exact(total)} rows{_share(part, total)} {verb}."
                found.append(banner("warn", f"Data {show_value(entry.get('name'))}.", text))
    return found


def head_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The line under the title: status, when, how long."""
    pairs = [("Status", show_value(manifest.get("status")))]
    started = str(manifest.get("started") or "")
    if started:
        pairs.append(("Started", started[:16].replace("T", " ")))
    took = elapsed(started, str(manifest.get("finished") or ""))
    if took is not None:
        pairs.append(("Took", duration(took)))
    return pairs


def elapsed(started: str, finished: str) -> float | None:
    """Seconds between two ISO times; None where either is missing or not a time."""
    from datetime import datetime

    try:
        seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return None
    return seconds if seconds >= 0 else None


def safe_link(path: Any) -> str:
    """A relative path as a link target, or '' where it would leave the folder or name a scheme."""
    from urllib.parse import quote

    text = str(path or "").replace("\\", "/").strip()
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or text.startswith("/") or ".." in parts or ":" in parts[0]:
        return ""
    return "/".join(quote(part) for part in parts)


def two_sizes(draw: Callable[[Size], str], wide: Size, narrow: Size) -> str:
    """A chart drawn twice; the style sheet shows the one whose letters are readable on the reader's screen."""
    return f'<div class="only-wide">{draw(wide)}</div><div class="only-narrow">{draw(narrow)}</div>'


def tip(value: Any, unit: str = "") -> str:
    """The exact value for a tooltip."""
    text = exact(value)
    return text if text == NOT_MEASURED else f"{text} {unit}".strip()


def unique(items: Sequence[str]) -> list[str]:
    """The items in order, each once."""
    return list(dict.fromkeys(items))
