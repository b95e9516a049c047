"""The catalogue reads a file once: the cache is never believed after a change, and never needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from luthier.core import catalog, sources

METHOD = '''"""Toy {i}: does nothing."""

class Toy:
    paper = "{paper}"
    cards = (1, 2)
    capabilities = frozenset({{"b", "a"}})
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with 100 methods that were written long ago, and a cache of its own."""
    monkeypatch.setenv("LUTHIER_PLUGINS", str(tmp_path))
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "SETTLED_SECONDS", -1.0)
    (tmp_path / "edits").mkdir()
    for i in range(100):
        (tmp_path / "edits" / f"toy{i}.py").write_text(METHOD.format(i=i, paper="Someone, 2020"))
    monkeypatch.setattr(catalog, "_sources", lambda: store)
    store = sources.Sources()
    return tmp_path


def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would begin."""
    store = sources.Sources()
    monkeypatch.setattr(catalog, "_sources", lambda: store)


def test_second_listing_reads_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = catalog.listing()
    assert sum(r["name"].startswith("toy") for r in first) == 100
    _fresh(monkeypatch)
    monkeypatch.setattr(sources, "read", lambda path: pytest.fail(f"{path} was read again"))
    assert catalog.listing() == first


def test_changed_file_is_seen_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = catalog.source_hash(catalog.entry("edits", "toy7"))
    catalog.listing()
    file = folder / "edits" / "toy7.py"
    at = file.stat()
    file.write_text(METHOD.format(i=7, paper="Anybody, 2021"))  # as long as before
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns + 1))
    for _ in range(2):  # in this process, and in another one
        one = catalog.entry("edits", "toy7")
        assert one.paper == "Anybody, 2021"
        assert catalog.source_hash(one) != before
        _fresh(monkeypatch)
    file.unlink()
    assert "toy7" not in [r["name"] for r in catalog.listing("edits")]


def test_files_that_may_still_change_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the file system's clock leave the same stamp."""
    monkeypatch.setattr(sources, "SETTLED_SECONDS", 1000.0)
    assert catalog.entry("edits", "toy7").paper == "Someone, 2020"
    catalog.listing()
    assert not [p for p in catalog._sources().known if p.startswith(str(folder))]


@pytest.mark.parametrize("broken", ["", "{", "folder"])
def test_cache_is_safe_to_lose(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    first = catalog.listing()
    file = catalog._sources().file
    assert file.exists()
    file.unlink()
    file.mkdir() if broken == "folder" else file.write_text(broken)
    _fresh(monkeypatch)
    assert catalog.listing() == first
    assert not list(file.parent.glob(".part-*"))


def test_hash_covers_what_the_method_imports_of_its_axis() -> None:
    reached = {f.name for f in catalog._reached(catalog.entry("tuners", "dora").path)}
    assert reached == {"_lora.py"}
    assert catalog.entry("tuners", "dora").capabilities  # inherited from the family file


def test_stale_record_counts_nothing_of_what_was_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = catalog.entry("edits", "merge")
    monkeypatch.setattr(catalog, "results_folder", lambda: tmp_path)
    record = {"source": catalog.source_hash(one), "expected": 2, "passed": ["a", "b"], "failed": [], "oracles": []}
    for source, wanted in ((record["source"], ("checked", 2, 2)), ("other", ("draft", 0, 2))):
        file = tmp_path / "checks.json"
        file.write_text(json.dumps({"edits/merge": {**record, "source": source}}))
        os.utime(file, (time.time(), time.time() + len(source)))
        told = catalog.status(one)
        assert (told["status"], told["checks_run"], told["checks_expected"]) == wanted
