"""What the experiments of card 19 share: several tuners on new sequence tasks, each at its best rate of a few."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import Tuner
from luthier.core.subject import Subject
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Experiment, Row, mean, spread
from luthier.tuners.full import Full


class NewTasks(Experiment):
    """Token accuracy of every tuner on every task. Keys of a row: `<tuner> <rate> <task>`, and without task the mean."""

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

    def settings(self) -> dict[str, Any]:
        shared = {k: v for k, v in vars(NewTasks).items() if not k.startswith("_") and isinstance(v, int | str)}
        return shared | super().settings()

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        plan = [(n, t, rate) for n, t in self.tuners(base).items() for rate in self.rates.split()]
        out: Row = {}
        for name, tuner, rate in [*plan, ("full", Full(), self.full_rate)]:
            found = []
            for task in self.tasks.split():
                found.append(
                    tuned_accuracy(
                        base, tokenizer, tuner, task, seed, self.steps, self.batch, float(rate), self.test_rows
                    )
                )
                out[f"{name} {rate} {task}"] = found[-1]
            out[f"{name} {rate}"] = sum(found) / len(found)
        return out

    def best(self, rows: list[Row], name: str) -> tuple[float, str]:
        """Mean over seeds and tasks at the better rate, and the same in words."""
        keys = [k for k in rows[0] if k.split(" ")[0] == name and len(k.split(" ")) == 2]
        key = max(keys, key=lambda k: mean(rows, k))
        return mean(rows, key), f"{name} {spread(rows, key)} (at {key.split(' ')[1]})"

    def explanation(self, rows: list[Row]) -> str:
        failed = [c.statement for c in self.claims(rows) if c.central and not c.holds]
        return f"at this size and with these rates these do not hold: {'; '.join(failed)}"


def tuned_accuracy(
    base: Any, tokenizer: Any, tuner: Tuner, task: str, seed: int, steps: int, batch: int, rate: float, test_rows: int
) -> float:
    """Token accuracy under teacher forcing on unseen rows of `task`, after tuning on it."""
    source = f"sandbox:sequence?task={task}&n=2000&seed={seed}"
    train = data.prepare(source, tokenizer=tokenizer).examples
    model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
    settings = TrainSettings(max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate)
    Loop(model, tuner, SFT(), train, settings, tokenizer.pad_token_id, seed).fit()
    rows = sandbox.rows("sequence", task=task, split="test", n=test_rows, seed=12)
    return token_accuracy(model.eval(), tokenizer, rows)


@torch.no_grad()
def token_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of answer tokens that are the likeliest given the true past."""
    subject = Subject(model, tokenizer)
    pairs = [subject.encode_pair(r["prompt"], r["completion"]) for r in rows]
    best = [hit for _, hit in subject.pair_logp(pairs)]
    return float(sum(h.sum() for h in best) / sum(len(h) for h in best))
