"""A tuned run, repaired by an edit of its weights and measured as the run was: a run folder of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.core import config, runs
from luthier.core.config import Recipe as RunRecipe
from luthier.core.runs import RunFolder


def repaired(run: Path, place: Path, repair: Mapping[str, Any], told: RunRecipe, before: Any) -> dict[str, Any]:
    """Results of the model of `run` after `repair`, as in results.json; the model and everything else is in `place`.

    repair  name and options of an edit, and `data` for those that ask data; an edit of two checkpoints gets the base second
    told    recipe of the run;  before  what the untuned model answered to its tasks
    """
    from luthier import report
    from luthier.verbs.load import load
    from luthier.verbs.run import measured_tasks

    folder, source = RunFolder(place), RunFolder(run)
    place.mkdir(parents=True, exist_ok=True)
    kind = _edit(run, place, dict(repair), told)
    told = config.recipe(told, {"output_dir": str(place), "name": place.name})
    files = list((place / kind).glob("*.safetensors"))
    artefact = {
        "kind": kind, "path": kind, "bytes": sum(f.stat().st_size for f in files), "sha256": runs.hash_files(place / kind),
    }  # fmt: skip
    manifest = {**source.manifest, "kind": "edit", "name": place.name, "recipe": told.resolved(), "status": "running",
                "repair": {"of": run.name, **config.plain(repair)}, "artefact": artefact}  # fmt: skip
    runs.write_json(place / "run.json", manifest)
    runs.write_text(place / "recipe.yaml", yaml.safe_dump(told.resolved(), sort_keys=False))
    cost = json.loads((run / "results.json").read_text(encoding="utf-8"))["cost"]
    subject = load(str(place)).subject(told.method("decoding", "decoding"), told.seed)
    results = {
        **_measured(place, subject, measured_tasks(told), told, before),
        "cost": {**cost, "stored_bytes": artefact["bytes"]},
    }
    runs.write_json(place / "results.json", results)
    folder.update(status="done", finished=runs.now())
    report.write_run_report(place)
    return results


def same_repair(place: Path, repair: Mapping[str, Any]) -> bool:
    """Whether what is in `place` already was made by these options."""
    if not (place / "run.json").exists():
        return False
    told = RunFolder(place).manifest.get("repair", {})
    return {k: v for k, v in told.items() if k != "of"} == config.plain(repair)


def _edit(run: Path, place: Path, repair: dict[str, Any], told: RunRecipe) -> str:
    """The edited weights, in a folder that is called what it holds."""
    from luthier.core.shards import ADAPTER
    from luthier.verbs.edit import edit

    asked: dict[str, Any] = {key: repair.pop(key) for key in ("data", "objective") if key in repair}
    method = config.build("edits", repair, "procedure.repairs")
    if method.inputs[0] > 1:
        asked["base_model"] = told.model.model_name_or_path
    whole, small = place / "model", place / "adapter"
    edit({"edit": repair, "models": [str(run)], "output_dir": str(whole), "seed": told.seed, **asked})
    if not (whole / ADAPTER).is_file():
        return whole.name
    runs.write_folder(small, lambda part: [f.replace(part / f.name) for f in whole.iterdir()])
    whole.rmdir()
    return small.name


def _measured(place: Path, subject: Any, tasks: list[Any], told: RunRecipe, before: Any) -> dict[str, Any]:
    from luthier.evaluation import measure, pair
    from luthier.evaluation._audit import summary
    from luthier.evaluation._compare import samples

    after = measure(subject, tasks, base=before)
    results = pair(before, after)
    if told.evaluate.audit is not None:
        results["audit"] = summary(before, after, results, told.evaluate.audit)
    runs.write_lines(place / "samples.jsonl", samples(before, after, told.evaluate.samples))
    runs.write_lines(place / "generated_predictions.jsonl", after.predictions())
    return results
