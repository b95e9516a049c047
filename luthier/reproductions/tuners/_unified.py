"""What the experiments of card 19 share: several tuners on new sequence tasks, each at its best rate of a few."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.method import Tuner
from luthier.reproductions._family import Experiment, Row, mean, spread
from luthier.reproductions._sequence import lessons, token_accuracy, tune, unseen
from luthier.tuners.full import Full


class NewTasks(Experiment):
    """Token accuracy of every tuner on every task. Keys of a row: `<tuner> <rate> <task>`, and without task the mean."""

    scope: ClassVar[str] = "this size and with these rates"
    model: ClassVar[str] = "nano-1m"
    tasks: ClassVar[str] = "mix backshift"
    steps: ClassVar[int] = 200
    batch: ClassVar[int] = 16
    rates: ClassVar[str] = "5e-3 1e-2"
    full_rate: ClassVar[str] = "1e-3"
    test_rows: ClassVar[int] = 100

    def tuners(self, base: Any) -> dict[str, Tuner]:
        """Name to tuner; full fine-tuning is added."""
        raise NotImplementedError

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        plan = [(n, t, rate) for n, t in self.tuners(base).items() for rate in self.rates.split()]
        out: Row = {}
        for name, tuner, rate in [*plan, ("full", Full(), self.full_rate)]:
            found = []
            for task in self.tasks.split():
                settings = TrainSettings(
                    max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=float(rate)
                )
                done = tune(base, tokenizer, tuner, lessons(tokenizer, task, seed), settings, seed)
                found.append(token_accuracy(done.model, tokenizer, unseen(task, self.test_rows)))
                out[f"{name} {rate} {task}"] = found[-1]
            out[f"{name} {rate}"] = sum(found) / len(found)
        return out

    def best(self, rows: list[Row], name: str) -> tuple[float, str]:
        """Mean over seeds and tasks at the better rate, and the same in words."""
        keys = [k for k in rows[0] if k.split(" ")[0] == name and len(k.split(" ")) == 2]
        key = max(keys, key=lambda k: mean(rows, k))
        return mean(rows, key), f"{name} {spread(rows, key)} (at {key.split(' ')[1]})"
