"""Progress: one display with loss, rate, tokens per second and time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

from luthier.core.loop import Loop, LoopCallback


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(loop: Loop, row: dict[str, Any], left: float) -> str:
    parts = [f"step {row['step']}/{loop.total}", f"loss {row['loss']:.4f}", f"lr {row['learning_rate']:.2e}"]
    parts += [f"grad {row['grad_norm']:.2f}", f"{row['tokens_per_second']:,.0f} tokens/s", f"left {_clock(left)}"]
    return "  ".join(parts)


class Display(LoopCallback):
    """Writes to `out`: a bar when it is a terminal, else one line per logged step."""

    def __init__(self, title: str, out: TextIO | None = None):
        self.title, self.out = title, out or sys.stderr
        self.bar: Any = None
        self.task: Any = None

    def start(self, loop: Loop) -> None:
        self.begun, self.first = time.perf_counter(), loop.step_index
        if not loop.accelerator.is_main_process or not self.out.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=Console(file=self.out))
        self.task = self.bar.add_task(self.title, total=loop.total, completed=loop.step_index, figures="")
        self.bar.start()

    def step(self, loop: Loop) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=loop.step_index)

    def log(self, loop: Loop, row: dict[str, Any]) -> None:
        if self.bar is not None:
            told = f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {row['tokens_per_second']:,.0f} tok/s"
            self.bar.update(self.task, figures=told)
        elif loop.accelerator.is_main_process:
            done = max(1, loop.step_index - self.first)
            left = (time.perf_counter() - self.begun) / done * (loop.total - loop.step_index)
            print(f"{self.title}  {_line(loop, row, left)}", file=self.out, flush=True)

    def evaluated(self, loop: Loop, row: dict[str, Any]) -> None:
        told = {
            k: v
            for k, v in row.items()
            if k.startswith("eval_") and k not in ("eval_runtime", "eval_samples_per_second")
        }
        self.say(loop, f"step {row['step']}: " + ", ".join(f"{k} {v:.4f}" for k, v in told.items()))

    def saved(self, loop: Loop, path: Path) -> None:
        self.say(loop, f"saved {path}")

    def say(self, loop: Loop, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(f"{self.title}  {text}", highlight=False)
        elif loop.accelerator.is_main_process:
            print(f"{self.title}  {text}", file=self.out, flush=True)

    def end(self, loop: Loop) -> None:
        if self.bar is not None:
            self.bar.stop()


class Trackers(LoopCallback):
    """accelerate's trackers, by `report_to`."""

    def __init__(self, name: str, recipe: dict[str, Any]):
        self.name, self.recipe = name, recipe

    def start(self, loop: Loop) -> None:
        flat = {k: v for k, v in self.recipe.items() if isinstance(v, int | float | str | bool)}
        loop.accelerator.init_trackers(self.name, config=flat)

    def log(self, loop: Loop, row: dict[str, Any]) -> None:
        loop.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    evaluated = log

    def end(self, loop: Loop) -> None:
        loop.accelerator.end_training()


class FromTransformers(LoopCallback):
    """Runs users' transformers.TrainerCallback objects on the loop's events.

    They get TrainingArguments' names through `args` (our settings), a TrainerState and a TrainerControl; of the control,
    should_training_stop, should_evaluate and should_save are obeyed.
    """

    def __init__(self, callbacks: list[Any], args: Any):
        from transformers import TrainerControl, TrainerState

        self.callbacks, self.args = callbacks, args
        self.state, self.control = TrainerState(), TrainerControl()

    def _fire(self, event: str, loop: Loop, **extra: Any) -> None:
        self.state.global_step, self.state.max_steps = loop.step_index, loop.total
        self.state.epoch = loop.step_index / loop.plan.steps_per_epoch
        self.state.log_history = loop.history
        told = {"model": loop.plain, "optimizer": loop.optimizer, **extra}
        for callback in self.callbacks:
            self.control = getattr(callback, event)(self.args, self.state, self.control, **told) or self.control
        self._obey(loop)

    def _obey(self, loop: Loop) -> None:
        if self.control.should_training_stop:
            loop.stop_reason = "a callback asked to stop"
        if self.control.should_evaluate and loop.held_out:
            self.control.should_evaluate = False
            loop._evaluate()
        if self.control.should_save and loop.run is not None:
            self.control.should_save = False
            loop.save()

    def start(self, loop: Loop) -> None:
        self._fire("on_train_begin", loop)

    def epoch(self, loop: Loop, epoch: int) -> None:
        if epoch:
            self._fire("on_epoch_end", loop)
        self._fire("on_epoch_begin", loop)

    def step(self, loop: Loop) -> None:
        self._fire("on_step_end", loop)

    def log(self, loop: Loop, row: dict[str, Any]) -> None:
        self._fire("on_log", loop, logs=row)

    def evaluated(self, loop: Loop, row: dict[str, Any]) -> None:
        self._fire("on_evaluate", loop, metrics=row)

    def saved(self, loop: Loop, path: Path) -> None:
        self._fire("on_save", loop)

    def end(self, loop: Loop) -> None:
        self._fire("on_train_end", loop)
