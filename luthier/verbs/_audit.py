"""An audit along the way: the same questions before the first step, at every epoch or so many steps, and after the last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import LuthierError
from luthier.verbs.load import Loaded


class Watch(LoopCallback):
    """Rows {step, epoch, audit: {task: value}} in the log, of the audit's tasks and of the target's.

    ready  what was prepared (a procedure may measure in its own way);  before  answers of the untuned model
    """

    def __init__(self, ready: Any, before: Any, every: Literal["epoch"] | int):
        self.ready = replace(ready, tasks=[t for t in ready.tasks if t.group in ("safety", "target")])
        self.before, self.every = before, every

    def start(self, loop: Loop) -> None:
        if loop.sharded:
            raise LuthierError("evaluate.audit.every does not work with sharded parameters: remove the key")
        if loop.step_index == 0:
            self._look(loop)

    def step(self, loop: Loop) -> None:
        every = loop.plan.steps_per_epoch if self.every == "epoch" else self.every
        if loop.step_index % every == 0 or loop.step_index == loop.total:
            self._look(loop)

    def _look(self, loop: Loop) -> None:
        if not loop.accelerator.is_main_process or self.before is None:
            return
        ready = self.ready.loaded
        tuned = Loaded(loop.plain, ready.tokenizer, ready.task, ready.name, "")
        found = self.ready.measure(tuned, self.before)
        values = {}
        for name, answers in found.answers.items():
            one = found.tasks[name]
            metric = one.metric or next(iter(one.scorer.table(answers)))
            if metric in answers.stats:
                values[name] = float(answers.stats[metric].mean())
        loop.record({"step": loop.step_index, "epoch": loop.step_index / loop.plan.steps_per_epoch, "audit": values})
