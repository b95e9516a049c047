"""One run of a comparison, in this process or in one of its own: what it gave, or why it gave nothing.

A process of its own is told what to do on standard input and answers with the last line of its standard output; results
are in the run's folder. What untuned models answered is kept in files, so that such processes share it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.core import config, meter, runs
from luthier.core.adapt import as_served
from luthier.core.config import Recipe
from luthier.core.logprobs import Scorer
from luthier.core.loop import Interrupted, Loop, LoopCallback
from luthier.core.method import HEADED, Refusal
from luthier.verbs.load import calm, load
from luthier.verbs.run import measured_tasks, run

Cell = dict[str, Any]


def attempt(
    one: Recipe, *, resume: bool, quiet: bool, passes: bool, bases: dict[str, Any], callbacks: Sequence[Any] = ()
) -> Cell:
    """Run `one`: status done with results, refused with why, or failed with the error. Interruptions are not caught."""
    unfinished = resume and (Path(one.output_dir or "") / "run.json").exists()
    own = [Passes(one)] if passes else []
    try:
        done = run(one, quiet=quiet, bases=bases, callbacks=[*callbacks, *own], resume=True if unfinished else None)
    except (Interrupted, KeyboardInterrupt):
        raise
    except Refusal as refusal:
        return {"status": "refused", "error": str(refusal)}
    except Exception as error:
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"status": "done", "results": done.results}


def attempt_apart(one: Recipe, *, bases: Path, **told: bool) -> Cell:
    """The same in a fresh process; one that dies is a failure as well. Raises Interrupted where it was asked to stop."""
    job = {"recipe": one.model_dump(exclude_unset=True, mode="json"), "bases": str(bases), **told}
    command = [sys.executable, "-m", "luthier.verbs._cell"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        said = _heard(child, json.dumps(job))
    try:
        found: Cell = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        return {"status": "failed", "error": f"the process of this run died (code {child.returncode})"}
    if found["status"] == "interrupted":
        raise Interrupted(found["error"])
    if found["status"] == "done":
        found["results"] = json.loads((Path(one.output_dir or "") / "results.json").read_text(encoding="utf-8"))
    return found


def _heard(child: subprocess.Popen[str], job: str) -> str:
    """What the child printed. A stop that is asked of this process is handed on, and the child's checkpoint waited for."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        return child.communicate(job)[0]
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.communicate()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


class Passes(LoopCallback):
    """After training, seconds of one pass over the first micro-batch, medians: `forward_seconds`, `backward_seconds`, and
    `serving_overhead`, what the tuned model takes longer than the base, as a share (no gradient, in turns with the base).

    An ordinary checkpoint, and an adapter that merges, are served as a model of the base's shape: 0 by construction.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def end(self, loop: Loop) -> None:
        whole = loop.tuner.artefact == "model" or "merge" in loop.tuner.capabilities
        with torch.random.fork_rng():
            forward, backward = self._training(loop)
            loop.wrapped.eval()
            overhead = 0.0 if whole else self._serving(loop)
        loop.fitted.cost |= {
            "forward_seconds": forward, "backward_seconds": backward, "serving_overhead": overhead,
            "merges": loop.tuner.artefact == "adapter" and whole,
        }  # fmt: skip

    @staticmethod
    def _training(loop: Loop) -> list[float]:
        loop.wrapped.train()
        held: list[Any] = []

        def forward() -> None:
            held.append(loop.mean_loss())

        def backward() -> None:
            held.pop().backward()

        took = meter.in_turns(forward, backward)
        loop.optimizer.zero_grad()
        return took

    @torch.no_grad()
    def _serving(self, loop: Loop) -> float:
        told = self.recipe.model
        task = loop.objective.task if told.task == "auto" else told.task
        with calm():
            untuned = load(told, task, loop.plain.config.num_labels if task in HEADED else None)
        base = Scorer(untuned.model.to(loop.device).eval()).warm()
        with as_served(loop.tuner, loop.plain):
            plain, tuned = meter.in_turns(lambda: loop.mean_loss(base), loop.mean_loss)
        return tuned / plain - 1


class Bases(dict[str, Any]):
    """What untuned models answered, by their hash, in files under `folder`."""

    def __init__(self, folder: Path, tasks: Callable[[], Sequence[Any]]):
        super().__init__()
        self.folder, self.tasks = folder, tasks

    def __contains__(self, key: object) -> bool:
        return (self.folder / str(key)).exists()

    def __getitem__(self, key: str) -> Any:
        from luthier.evaluation import Measured

        return Measured.load(self.folder / key / "base.json", self.tasks())

    def __setitem__(self, key: str, value: Any) -> None:
        runs.write_folder(self.folder / key, lambda part: value.save(part / "base.json"))


def main() -> None:
    job = json.loads(sys.stdin.read())
    one = config.recipe(job.pop("recipe"))
    bases = Bases(Path(job.pop("bases")), lambda: measured_tasks(one))
    try:
        found = attempt(one, bases=bases, **job)
    except (Interrupted, KeyboardInterrupt) as stopped:
        found = {"status": "interrupted", "error": str(stopped) or "stopped"}
    print("\n" + json.dumps({k: v for k, v in found.items() if k != "results"}), flush=True)


if __name__ == "__main__":
    main()
