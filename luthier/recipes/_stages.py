"""What procedures of several stages share."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from luthier.core import catalog
from luthier.core.config import ModelSettings, Recipe, TrainSettings
from luthier.core.runs import RunFolder, write_folder


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


def rounded_copy(model: ModelSettings, kind: str, target: Path) -> Path:
    """`target`, a copy of the model whose matrices hold what a base quantised as `kind` does. Written once."""
    if not target.exists():
        from luthier.verbs.builds import quantise
        from luthier.verbs.load import load

        loaded = load(model)
        quantise(loaded.model, kind)

        def write(part: Path) -> None:
            loaded.model.save_pretrained(part)
            loaded.tokenizer.save_pretrained(part)

        write_folder(target, write)
    return target


def best_kept(recipe: Recipe, train: TrainSettings, looks: int) -> dict[str, Any]:
    """Keys of `train` that keep the checkpoint with the least held-out loss, where rows are held out and nothing else is said."""
    held_out, keys = recipe.data.eval is not None or recipe.data.val_size, train.model_dump(exclude_unset=True)
    if held_out and not {"eval_strategy", "load_best_model_at_end"} & set(keys):
        steps = {"eval_strategy": "steps", "eval_steps": max(1, -(-train.max_steps // looks))}
        keys |= {**(steps if train.max_steps > 0 else {"eval_strategy": "epoch"}), "load_best_model_at_end": True}
    return keys


def held_out_rows(recipe: Recipe) -> Sequence[dict[str, Any]]:
    """The rows that the recipe holds out, as they are read."""
    from luthier import data

    told = recipe.data
    assert told.train is not None
    given: dict[str, Any] = {"columns": told.columns, "template": told.template, "seed": recipe.seed}
    if told.eval is not None:
        return data.read(told.eval, **given).rows
    table = data.read(told.train, limit=told.limit, **given)
    return data.split(table, told.val_size, seed=recipe.seed, stratify=told.stratify, group=told.group)[1].rows


def small_artefact(tuner: str) -> dict[str, bool]:
    """Keys by which a cell stores what moved and not the whole model."""
    return {"train.save_delta": True} if catalog.load("tuners", tuner).artefact == "model" else {}
