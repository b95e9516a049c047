"""What procedures of several stages share."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.core import catalog
from luthier.core.config import Recipe
from luthier.core.runs import RunFolder


def resumed(folder: str | Path, asked: bool | str | None) -> bool | str | None:
    """`asked` for a stage that had begun when the procedure was stopped; None for one that had not."""
    return asked if (Path(folder) / "run.json").exists() else None


def finished(folder: str | Path, recipe: Recipe) -> bool:
    """Whether the stage in `folder` was done before the procedure was stopped. Raises LuthierError if by another recipe."""
    from luthier.verbs.run import same_recipe

    place = RunFolder(folder)
    if not (place.path / "run.json").exists() or place.manifest["status"] != "done":
        return False
    same_recipe(place, recipe)
    return True


def forget_checkpoints(folders: Iterable[Path]) -> None:
    """Of a run that is done the delta stays; what was needed to go on does not."""
    for folder in folders:
        if (folder / "results.json").exists():
            for checkpoint in RunFolder(folder).checkpoints():
                shutil.rmtree(checkpoint)


def stage(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe of one stage: the whole one without its procedure."""
    return Recipe.model_validate({**recipe.model_dump(exclude_unset=True), "procedure": None, **changes})


def small_artefact(tuner: str) -> dict[str, bool]:
    """Keys by which a cell stores what moved and not the whole model."""
    return {"train.save_delta": True} if catalog.load("tuners", tuner).artefact == "model" else {}
