"""The recipes at the top level read, name methods that exist, and their tasks are tasks."""

from pathlib import Path

import pytest

from luthier.core import catalog, config
from luthier.verbs.run import measured_tasks

RECIPES = sorted((catalog.configs_folder().parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_recipe_reads(file: Path) -> None:
    told = config.recipe(file)
    assert file.read_text(encoding="utf-8").startswith("# ")
    for name, changes in told.compare.methods.items():
        own = {k: v for k, v in changes.items() if k.startswith(("tuner.", "train."))}
        one = config.recipe(file, {"tuner.name": name, **own})
        assert one.method("tuners", "tuner").name == name
    assert len({t.name for t in measured_tasks(told)}) >= len(told.evaluate.tasks)
