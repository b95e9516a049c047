"""One contender in one fresh process: settings that all share, the clock, peak memory, the result as a line of JSON."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-4
RESULT = "RESULT "
"""Prefix of the line that carries the result; whatever a library prints goes elsewhere."""


@dataclass
class Asked:
    """What one process is to run.

    small   a model of a million parameters: to try the benchmarks out, never to report
    equal   same batches in the same order for everyone (no shuffling, no buckets), the loss of each step reported
    """

    contender: str
    steps: int
    batch: int
    threads: int
    small: bool
    equal: bool
    folder: str


@dataclass
class Clock:
    """Seconds on the wall and of this process's CPU from the first step to the last, and the loss of each step."""

    begun: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.begun[0]
        self.cpu_seconds += time.process_time() - self.begun[1]


@dataclass
class Steps:
    """Seconds from the first step to the end of each, and what was spent before the first."""

    now: Callable[[], float]
    before: float = 0.0
    begun: float = 0.0
    ends: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.begun = self.now()

    def step(self) -> None:
        self.ends.append(self.now() - self.begun)


def asked() -> Asked:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", nargs="?", default="luthier")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--folder", required=True, help="where trainers may write")
    told = Asked(**vars(parser.parse_args()))
    import torch

    torch.set_num_threads(told.threads)
    return told


def tell(told: Asked, clock: Clock, rows: int) -> None:
    """The result, for `run.py`."""
    loss = sum(clock.losses) / max(1, len(clock.losses))
    result = {
        "contender": told.contender,
        "rows": rows,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "peak_mb": peak_mb(),
        "loss": loss,
        "losses": clock.losses,
    }
    say(result)


def say(result: dict[str, Any]) -> None:
    print(RESULT + json.dumps(result), flush=True)


def heard(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    """What a contender said. Raises SystemExit with what else it printed where it gave no result."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(RESULT))
    return found


def note(row: Any) -> None:
    """What is known so far, for whoever watches."""
    print(json.dumps(row), file=sys.stderr, flush=True)


def peak_mb() -> float:
    """Resident peak of this program. VmHWM starts anew at exec, unlike ru_maxrss, which remembers the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if found:
            return int(found[0].split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def plan_order(lengths: list[int], batch: int) -> list[int]:
    """The order in which luthier's unbucketed plan visits the rows: everyone else gets the rows in this order."""
    from luthier.core.batch import Plan

    return [i for step in Plan(lengths, batch, group_by_length=False).epoch(0) for i in step]


def train_settings(told: Asked, **more: Any) -> Any:
    """luthier's settings: its defaults, except for what all contenders share."""
    from luthier.core.config import TrainSettings

    return TrainSettings(
        max_steps=told.steps,
        per_device_train_batch_size=told.batch,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        logging_steps=1,
        group_by_length=not told.equal,
        **more,
    )


def trainer_arguments(told: Asked, grouped: bool) -> dict[str, Any]:
    """transformers' arguments: float32, fused AdamW (their default), linear decay, clipping at 1, no evaluation."""
    strategy = "sequential" if told.equal else "group_by_length" if grouped else "random"
    return {
        "output_dir": told.folder,
        "max_steps": told.steps,
        "per_device_train_batch_size": told.batch,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,
        "logging_steps": 1,
        "train_sampling_strategy": strategy,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }


def luthier_callback(clock: Clock) -> Any:
    """Starts the clock before the first step and stops it after the last."""
    from luthier.core.loop import LoopCallback

    class Timed(LoopCallback):
        def start(self, loop: Any) -> None:
            clock.start()

        def log(self, loop: Any, row: dict[str, Any]) -> None:
            clock.losses.append(row["loss"])

        def end(self, loop: Any) -> None:
            clock.stop()

    return Timed()


def luthier_steps(clock: Steps) -> Any:
    """Starts the clock before the first step and notes the end of each."""
    from luthier.core.loop import LoopCallback

    class Timed(LoopCallback):
        def start(self, loop: Any) -> None:
            clock.start()

        def log(self, loop: Any, row: dict[str, Any]) -> None:
            clock.step()

    return Timed()


def trainer_callback(clock: Clock) -> Any:
    """The same for transformers' trainers."""
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            clock.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            clock.stop()

    return Timed()
