"""What every procedure of several stages keeps, run by its own recipe file on few rows and steps.

A procedure is stopped by a signal after a step that is counted over all loops that it runs, whatever they are for.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.checks._battery import when
from luthier.checks._compare import CheckFailed, finite, require, same
from luthier.core import catalog, config
from luthier.core.loop import Interrupted, Loop, LoopCallback
from luthier.core.method import LuthierError

SMALL = {"train.max_steps": 4, "train.logging_steps": 1, "data.limit": 32, "evaluate.limit": 4, "evaluate.drift": False}
ARTEFACTS = ("model", "adapter", "delta")
MANIFEST = (
    "status",
    "started",
    "finished",
    "recipe",
    "versions",
    "device",
    "seeds",
    "data",
    "base",
    "method",
    "artefact",
)


@dataclass
class World:
    """A procedure's own recipe file, made small."""

    recipe: Path
    changes: dict[str, Any]
    label: str = "its own recipe"
    _kept: list[Whole] = field(default_factory=list)

    def told(self, folder: str | Path, **changes: Any) -> config.Recipe:
        with contextlib.chdir(self.recipe.parents[2]):  # data files are named from the folder above configs/
            return config.recipe(self.recipe, {**self.changes, **changes, "output_dir": str(folder)})

    def run(self, told: Any, **more: Any) -> Path:
        from luthier.verbs.run import run

        with contextlib.chdir(self.recipe.parents[2]):
            return run(told, quiet=True, **more).folder

    @property
    def whole(self) -> Whole:
        """A run that nothing stopped, made once."""
        if not self._kept:
            self._kept.append(Whole(self))
        return self._kept[0]


class Whole:
    """An uninterrupted run in a folder that lasts as long as this does; what its loops and surroundings were like."""

    def __init__(self, world: World):
        self.kept = tempfile.TemporaryDirectory()
        self.told = world.told(Path(self.kept.name) / "run")
        self.heard = _Heard()
        self.before = surroundings()
        with watched() as self.steps:
            self.folder = world.run(self.told, callbacks=[self.heard])
        self.after = surroundings()


@cache
def _world(name: str) -> World:
    entry = catalog.entry("recipes", name)
    if entry.config is None:
        raise LuthierError(f"recipes/{name}: its recipe file configs/recipes/{name}.yaml is missing")
    return World(entry.config.resolve(), {**SMALL, **catalog.load("recipes", name).small()})


def worlds(method: Any) -> list[World]:
    return [_world(method.name)]


class _Heard(LoopCallback):
    """Steps that a callback is told of."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, loop: Loop) -> None:
        self.steps += 1


@contextlib.contextmanager
def watched(stop_after: int = 0) -> Iterator[list[Loop]]:
    """The loop of every optimiser step while it lasts; Ctrl-C after that many of them."""
    own, seen = Loop._step, []

    def step(self: Loop) -> Any:
        out = own(self)
        seen.append(self)
        if len(seen) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return out

    Loop._step = step  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Loop._step = own  # type: ignore[method-assign]


def surroundings() -> dict[str, Any]:
    """What a run must leave as it was; threads and random numbers are set by the recipe's own keys."""
    return {
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "handler of Ctrl-C": signal.getsignal(signal.SIGINT),
        "handler of SIGTERM": signal.getsignal(signal.SIGTERM),
    }


def places(folder: Path) -> list[Path]:
    """Run folders that a procedure ends in: its own, or one a cell of its comparison."""
    if (folder / "run.json").exists():
        return [folder]
    return [folder / cell["run"] for cell in json.loads((folder / "compare.json").read_text())["cells"]]


def weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of the tuned models, and of whatever else the procedure says it made (folders beside them with weights)."""
    out: dict[str, Tensor] = {}
    for place in places(folder):
        for part in sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("checkpoint-")):
            for file in sorted(part.glob("*.safetensors")):
                out |= {f"{place.name}/{part.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return out


def equal(a: Path, b: Path, what: str) -> None:
    """The same weights to the last bit, and the same measurements."""
    x, y = weights(a), weights(b)
    require(x.keys() == y.keys(), f"{what}: other tensors were written")
    for name, tensor in x.items():
        same(tensor, y[name], f"{what}: {name}")
    for pair in zip(places(a), places(b), strict=True):
        found = [json.loads((f / "results.json").read_text()) for f in pair]
        for key in ("base", "tuned", "paired"):
            require(found[0][key] == found[1][key], f"{what}: '{key}' of results.json differs")


def kept(told: Any, found: Any, at: str = "") -> None:
    """Everything in `told` is in `found`."""
    if isinstance(told, dict):
        for key, value in told.items():
            require(isinstance(found, dict) and key in found, f"the key '{at}{key}' of the recipe is gone")
            kept(value, found[key], f"{at}{key}.")
        return
    require(told == found, f"'{at[:-1]}' was {told} and is {found}")


# ------------------------------------------------------------------------------------------------- checks


def check_complete(method: Any, world: World) -> None:
    """A run folder like any other: manifest, results, report, and a model that loads and is finite."""
    if method.compares:
        told = json.loads((world.whole.folder / "compare.json").read_text())
        require(told["status"] == "done", f"the status of a finished comparison is '{told['status']}'")
        require((world.whole.folder / "report.html").exists(), "report.html is missing")
    for folder in places(world.whole.folder):
        complete(folder)


def complete(folder: Path) -> None:
    """Raises CheckFailed unless `folder` is a whole run folder."""
    from luthier.verbs.load import load

    manifest = json.loads((folder / "run.json").read_text())
    missing = [k for k in MANIFEST if k not in manifest]
    require(not missing, f"run.json does not tell {', '.join(missing)}")
    require(manifest["status"] == "done", f"the status of a finished run is '{manifest['status']}'")
    results = json.loads((folder / "results.json").read_text())
    for key in ("tasks", "base", "tuned", "paired", "cost"):
        require(bool(results.get(key)), f"results.json holds nothing under '{key}'")
    own = ("metrics.jsonl",) if manifest["kind"] == "run" else ()  # else the runs inside have theirs
    for name in ("recipe.yaml", "report.html", *own):
        require((folder / name).exists(), f"{name} is missing")
    require(manifest["artefact"]["path"] in ARTEFACTS, f"the artefact is called {manifest['artefact']['path']}")
    require((folder / manifest["artefact"]["path"]).is_dir(), "the folder of the artefact is missing")
    for name, tensor in load(str(folder)).model.state_dict().items():
        finite(tensor, name)


def check_same_seed(method: Any, world: World) -> None:
    """The same recipe gives the same weights and measurements, whatever the random state was before."""
    with tempfile.TemporaryDirectory() as other:
        torch.manual_seed(991)
        equal(world.whole.folder, world.run(world.told(f"{other}/run")), "the same seed")


def check_other_seed(method: Any, world: World) -> None:
    """Another seed gives other weights."""
    with tempfile.TemporaryDirectory() as other:
        folder = world.run(world.told(f"{other}/run", seed=world.whole.told.seed + 1))
        x, y = weights(world.whole.folder), weights(folder)
        alike = x.keys() == y.keys() and all(torch.equal(t, y[n]) for n, t in x.items())
        require(not alike, "another seed gave the same weights")


def check_resumed(method: Any, world: World) -> None:
    """Stopped in the first, a middle and the last loop, and continued: the same weights to the last bit."""
    loops: list[list[int]] = []
    for n, loop in enumerate(world.whole.steps, 1):
        if n == 1 or loop is not world.whole.steps[n - 2]:
            loops.append([])
        loops[-1].append(n)
    for at in sorted({0, len(loops) // 2, len(loops) - 1}):
        with tempfile.TemporaryDirectory() as other:
            told = world.told(f"{other}/run")
            try:
                with watched(loops[at][(len(loops[at]) - 1) // 2]):
                    world.run(told)
            except Interrupted as error:
                require("\n" not in str(error), "what is said on Ctrl-C is longer than a line")
            else:
                raise CheckFailed(f"Ctrl-C in loop {at + 1} of {len(loops)} did not stop it")
            equal(world.whole.folder, world.run(told, resume=True), f"stopped in loop {at + 1} of {len(loops)}")


@when(lambda method: not method.compares)
def check_repeat(method: Any, world: World) -> None:
    """The recipe.yaml of the run folder makes the same weights again."""
    with tempfile.TemporaryDirectory() as other:
        written = world.whole.folder / "recipe.yaml"
        again = world.run(config.recipe(written, {"output_dir": f"{other}/run"}))
        equal(world.whole.folder, again, "run again by its recipe.yaml")


def check_keys_kept(method: Any, world: World) -> None:
    """What the recipe sets is in the manifest, and is what the last loop ran by."""
    told = world.whole.told.model_dump(mode="json", exclude_unset=True)
    for own in ("procedure", "stability", "output_dir", *(("name", "compare") if method.compares else ())):
        told.pop(own, None)
    manifest = json.loads((places(world.whole.folder)[-1] / "run.json").read_text())
    last = world.whole.steps[-1]
    require(last.seed == world.whole.told.seed, f"the last loop ran with seed {last.seed}")
    kept(told["train"], last.settings.model_dump(mode="json"), "train.")
    kept(told, manifest["recipe"])


def check_surroundings(method: Any, world: World) -> None:
    """The process is left as it was, with the threads that the recipe asks for; callbacks heard the last loop."""
    whole = world.whole
    for what, value in whole.before.items():
        require(whole.after[what] == value, f"{what} was {value} and is left as {whole.after[what]}")
    asked = whole.told.train.torch_threads
    require(
        asked in (None, torch.get_num_threads()), f"{asked} threads were asked for, {torch.get_num_threads()} are left"
    )
    last = sum(loop is whole.steps[-1] for loop in whole.steps)
    require(whole.heard.steps >= last, f"a callback heard {whole.heard.steps} steps of the last loop's {last}")


def check_not_overwritten(method: Any, world: World) -> None:
    """A finished run is left alone: one clear line, before any step is taken."""
    before = weights(world.whole.folder)
    with watched() as steps:
        try:
            world.run(world.whole.told)
        except LuthierError as error:
            require("\n" not in str(error), "the error is longer than a line")
        else:
            raise CheckFailed("a finished run was written over")
    require(not steps, f"{len(steps)} steps were taken before it was seen that a run is here already")
    for name, tensor in weights(world.whole.folder).items():
        same(tensor, before[name], name)
