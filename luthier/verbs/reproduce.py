"""`luthier reproduce`: run a card's experiment over several seeds and write what was found, whatever it is."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.core import catalog, runs
from luthier.core.method import LuthierError
from luthier.reproductions._family import Experiment


@dataclass
class Reproduction:
    """A finished experiment: the file that was written and what it holds."""

    path: Path
    told: dict[str, Any]

    @property
    def verdict(self) -> str:
        return self.told["verdict"]

    def text(self) -> str:
        lines = [f"{self.told['method']}: {self.verdict}", self.told["summary"]]
        lines += [
            f"  {'holds' if c['holds'] else 'FAILS'}  {c['statement']}  [{c['measured']}]" for c in self.told["claims"]
        ]
        return "\n".join([*lines, f"written: {self.path}"])


def experiment(name: str) -> tuple[catalog.Entry, Experiment]:
    """The experiment of a method. Raises LuthierError where there is none."""
    one = catalog.find(name)
    try:
        module = importlib.import_module(f"luthier.reproductions.{one.axis}.{one.name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("luthier.reproductions"):
            raise
        raise LuthierError(
            f"{one.axis}/{one.name} has no experiment: luthier/reproductions/{one.axis}/{one.name}.py"
        ) from None
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Experiment) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise LuthierError(f"{module.__name__} must hold exactly one Experiment, it holds {len(found)}")
    return one, found[0]()


def reproduce(
    name: str, *, seeds: int | None = None, output: str | Path | None = None, resume: bool = False
) -> Reproduction:
    """Measure every seed, judge the claims, write the result file with its manifest.

    Each seed's row is kept as soon as it is measured, in `.partial` beside the result file; `resume` goes on from there.
    Raises LuthierError where other code than this, or other settings, measured what is there.
    """
    import torch

    one, trial = experiment(name)
    count = seeds or trial.seeds
    path = Path(output) if output else catalog.result_file(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "settings": trial.settings(),
        "experiment_sha256": runs.hash_files(Path(inspect.getfile(type(trial)))),
        "method_sha256": runs.hash_files(one.path),
        "versions": runs.versions(),
        "git": runs.git(),
    }
    partial = path.with_name(f"{path.name}.partial")
    kept: dict[str, Any] = {"about": about, "started": runs.now(), "seconds": 0.0, "rows": []}
    if resume:
        kept = _kept(partial, about)
    rows = kept["rows"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fastest at this size, and the same numbers on every machine
    try:
        for seed in range(len(rows), count):
            begun = time.perf_counter()
            rows.append(trial.measure(seed))
            kept["seconds"] += time.perf_counter() - begun
            runs.write_json(partial, kept)
            told = "  ".join(f"{k} {v:.3f}" for k, v in rows[-1].items())
            print(f"seed {seed}: {told}", file=sys.stderr, flush=True)
    finally:
        torch.set_num_threads(threads)
    rows = rows[:count]
    claims = trial.claims(rows)
    central = [c for c in claims if c.central]
    verdict = "reproduced" if all(c.holds for c in central) else "contradicted"
    keys = list(rows[0])
    means = {k: statistics.fmean(r[k] for r in rows) for k in keys}
    spreads = {k: statistics.stdev(r[k] for r in rows) if count > 1 else None for k in keys}
    summary = "; ".join(c.measured for c in central)
    if verdict == "contradicted":
        summary = f"{trial.explanation(rows)} ({summary})"
    result: dict[str, Any] = {
        "method": f"{one.axis}/{one.name}",
        "cards": list(one.cards),
        "paper": one.paper,
        "verdict": verdict,
        "summary": summary,
        "setup": " ".join(trial.setup.split()),
        "claims": [asdict(c) for c in claims],
        "seeds": list(range(count)),
        "mean": means,
        "sd": spreads,
        "rows": rows,
        "manifest": {
            "command": f"luthier reproduce {one.axis}/{one.name} --seeds {count}",
            **about,
            "device": runs.device(),
            "started": kept["started"],
            "seconds": round(kept["seconds"], 1),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }
    runs.write_json(path, result)
    partial.unlink(missing_ok=True)
    return Reproduction(path, result)


def _kept(partial: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted experiment has measured, by the same code with the same settings."""
    if not partial.exists():
        raise LuthierError(f"{partial}: no such file: nothing to resume; run without --resume")
    kept = json.loads(partial.read_text(encoding="utf-8"))
    then, now = ({**a, "git": a["git"]["commit"]} for a in (kept["about"], json.loads(json.dumps(about))))
    if changed := [
        k for k in now if then.get(k) != now[k]
    ]:  # other results, which make the tree dirty, change nothing here
        raise LuthierError(f"{partial}: measured with another {', '.join(changed)}: run without --resume to begin anew")
    return kept
