"""Tune on a sequence task that pretraining never showed, then ask for what pretraining taught: facts and copying."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.method import Tuner
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.reproductions._family import Experiment
from luthier.reproductions._sequence import lessons, token_accuracy, tune, unseen


class Forgetting(Experiment):
    """Facts are asked in the wording of pretraining; the new task is scored by exact match and by tokens."""

    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 2.5e-3
    facts: ClassVar[int] = 300
    test_rows: ClassVar[int] = 200

    def base(self) -> tuple[Any, Any]:
        return sandbox.load(self.model)

    def tuned(self, base: Any, tokenizer: Any, tuner: Tuner, seed: int, task: str = "") -> Any:
        """A copy of the base after tuning, on another task than the usual one where it is named."""
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        return tune(base, tokenizer, tuner, lessons(tokenizer, task or self.task, seed), settings, seed).model

    def facts_kept(self, model: Any, tokenizer: Any) -> float:
        rows = sandbox.rows("facts", task="verbatim", part="known", n=self.facts, seed=11)
        return exact(model, tokenizer, "facts", rows, 8)

    def skill_kept(self, model: Any, tokenizer: Any, task: str) -> float:
        rows = unseen(task, self.test_rows, seed=13)
        return exact(model, tokenizer, "sequence", rows, 16)

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        rows = unseen(self.task, self.test_rows)
        return {
            "facts": self.facts_kept(model, tokenizer),
            "task": exact(model, tokenizer, "sequence", rows, 16),
            "token_accuracy": token_accuracy(model, tokenizer, rows),
        }


def exact(model: Any, tokenizer: Any, world: str, rows: list[dict[str, Any]], limit: int) -> float:
    subject = Subject(model, tokenizer, decoder=Greedy())
    texts = subject.generate([r["prompt"] for r in rows], max_new_tokens=limit, stop=["\n"])
    judge = sandbox.world(world).score
    return sum(judge(r, t) for r, t in zip(rows, texts, strict=True)) / len(rows)
