"""Small labelled sets on the nano encoder: classes and a number from a few dozen rows, scored on unseen ones."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from luthier import data
from luthier.core.config import TrainSettings
from luthier.core.method import Objective, Tuner
from luthier.objectives.classification import Classification
from luthier.objectives.regression import Regression
from luthier.recipes._seeds import Outcome, train_once
from luthier.reproductions._family import Experiment
from luthier.verbs.load import load


class SmallSets(Experiment):
    """Nothing is chosen by the test rows: every run ends with its last step."""

    model: ClassVar[str] = "nano-encoder"
    rows: ClassVar[int] = 60
    pairs: ClassVar[int] = 240
    test_rows: ClassVar[int] = 300
    batch: ClassVar[int] = 16
    epochs: ClassVar[int] = 30
    learning_rate: ClassVar[float] = 6e-4
    objectives: ClassVar[dict[str, Objective]] = {
        "topic": Classification(), "acceptability": Classification(), "similarity": Regression(),
    }  # fmt: skip

    def outcome(self, task: str, tuner: Tuner, seed: int, **changes: Any) -> Outcome:
        """One run on the few training rows; accuracy or correlation on the test rows. `changes` are train settings."""
        train, test, classes = self._data[task]
        settings = {
            "num_train_epochs": self.epochs, "per_device_train_batch_size": self.batch, "warmup_ratio": 0.1,
            "learning_rate": self.learning_rate, "weight_decay": 0.01, "decay_vectors": False, "logging_steps": 1000,
        }  # fmt: skip

        def fresh() -> Any:
            return load(self.model, "classification", classes)

        return train_once(fresh, tuner, self.objectives[task], train, test, TrainSettings(**(settings | changes)), seed)

    @cached_property
    def _data(self) -> dict[str, tuple[Any, Any, int]]:
        """Training rows, test rows and outputs of each task: the same for every seed."""
        tokenizer = load(self.model).tokenizer
        out = {}
        for task, objective in self.objectives.items():
            source = f"sandbox:labels?task={task}_label"
            count = self.rows if isinstance(objective, Classification) else self.pairs
            train = data.prepare(f"{source}&n={count}", tokenizer=tokenizer)
            test = data.prepare(f"{source}&split=test&n={self.test_rows}", tokenizer=tokenizer, type=train.source)
            classes = len(train.report.label_names or "") if isinstance(objective, Classification) else 1
            out[task] = (train.examples, test.examples, classes)
        return out
