"""Tuning a model behind an adapter that is attached to it (core/attach.py): the tuner and the objective of such a stage."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from luthier.core.attach import AT, Attached
from luthier.core.batch import Batch, Example
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError, Objective, PartialTuner
from luthier.core.probe import Probe
from luthier.core.trainable import Selection


class Behind(PartialTuner):
    """`inner` tunes the model's own tensors; what `attach(model)` puts beside it stands still, or moves too if `joint`.

    ratio  of the attached tensors' learning rate to the model's, where they move
    """

    def __init__(
        self, inner: PartialTuner, attach: Callable[[nn.Module], Attached], joint: bool = False, ratio: float = 1.0
    ):
        self.inner, self.attach, self.joint, self.ratio = inner, attach, joint, ratio
        self.capabilities = inner.capabilities  # type: ignore[misc]
        self.learning_rate = inner.learning_rate  # type: ignore[misc]
        self.reselect = getattr(inner, "reselect", "never")
        self.attached: Attached

    @property
    def name(self) -> str:
        return self.inner.name

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        model = self.inner.wrap(model, task, seed)
        moving = {id(p) for p in model.parameters() if p.requires_grad}
        self.attached = self.attach(model)
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in moving)
        model.get_submodule(AT).requires_grad_(self.joint)
        return model

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        return self._beside(model, self.inner.select(model, rng))

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        return self._beside(model, self.inner.choose(model, probe))

    def _beside(self, model: nn.Module, selection: Selection) -> Selection:
        own = {n for n, _ in model.named_parameters() if n.startswith(f"{AT}.")}
        selection.whole = (selection.whole - own) | (own if self.joint else set())
        return selection

    @property
    def chooses(self) -> bool:
        return self.inner.chooses

    def due(self, epoch: int) -> bool:
        return self.inner.due(epoch)

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        told = self.inner.groups(model)
        if not self.joint:
            return told
        own = [n for n, _ in model.named_parameters() if n.startswith(f"{AT}.")]
        return [*(told or []), {"params": own, "lr_scale": self.ratio}]

    def parameter_count(self, model: nn.Module) -> int:
        return self.inner.parameter_count(model)

    def missing(self, model: nn.Module) -> str:
        return self.inner.missing(model)


class EachItsPrompt(Objective):
    """`inner` on batches whose rows name their prompt under `column` of their extras."""

    def __init__(self, inner: Objective, tuner: Behind, column: str):
        self.inner, self.tuner, self.column = inner, tuner, column
        self.rows, self.task, self.reference = inner.rows, inner.task, inner.reference  # type: ignore[misc]
        self.teacher = inner.teacher

    @property
    def name(self) -> str:
        return self.inner.name

    def for_examples(self, examples: Sequence[Example]) -> EachItsPrompt:
        return EachItsPrompt(self.inner.for_examples(examples), self.tuner, self.column)

    def weight(self, batch: Batch) -> float:
        return self.inner.weight(batch)

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        return self.inner.view(batch, step, total, rng)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        names = [str(n) for n in batch.extras[self.column]]
        if len(names) != len(batch.ids):
            raise LuthierError(
                "rows with different prompts cannot share a row of the batch: set train.packing to false"
            )
        scorer.warm()  # asks the model about a row of its own, which has no name
        with self.tuner.attached.chosen(names):
            return self.inner.compute(scorer, batch)


def from_folders(folders: dict[str, Path]) -> Callable[[nn.Module], Attached]:
    """Attach the adapters that runs wrote, each under its name; the first is the one in use."""

    def attach(model: nn.Module) -> Attached:
        from peft import PeftModel

        names = list(folders)
        wrapped = PeftModel.from_pretrained(model, str(folders[names[0]]), adapter_name=names[0])  # type: ignore[arg-type]
        for name in names[1:]:
            wrapped.load_adapter(str(folders[name]), adapter_name=name)
        return Attached(wrapped)

    return attach
