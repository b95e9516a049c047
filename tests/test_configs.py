"""Every method has a recipe that reads; on demand, every recipe runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import luthier
from luthier.core import catalog, config

ENTRIES = [e for e in catalog.entries() if not e.plugin]
RECIPES = [e for e in ENTRIES if e.axis not in ("edits",)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.axis}/{e.name}")
def test_every_method_has_a_config_with_a_story(entry: catalog.Entry) -> None:
    assert entry.config is not None
    assert entry.config.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("entry", RECIPES, ids=lambda e: f"{e.axis}/{e.name}")
def test_every_config_is_a_valid_recipe(entry: catalog.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalog.configs_folder().parent)
    assert entry.config is not None
    told = config.recipe(entry.config)
    assert told.resolved()["tuner"]["name"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", RECIPES, ids=lambda e: f"{e.axis}/{e.name}")
def test_every_config_runs(entry: catalog.Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(catalog.configs_folder().parent)
    assert entry.config is not None
    changes = {"output_dir": str(tmp_path / "run"), "max_steps": 3, "evaluate.limit": 4}
    done = luthier.run(entry.config, quiet=True, overrides=changes)
    assert done.report.exists()
