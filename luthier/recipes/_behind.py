"""Tuning a model behind an adapter that is attached to it (core/attach.py): tuner, objective and run of such a stage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from luthier.core import config, runs
from luthier.core.attach import AT, Attached
from luthier.core.batch import Batch, Example
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError, Objective, PartialTuner
from luthier.core.probe import Probe
from luthier.core.trainable import Selection
from luthier.verbs.load import load
from luthier.verbs.run import Prepared


class Behind(PartialTuner):
    """`inner` tunes the model's own tensors; what `attach(model)` puts beside it stands still, or moves too if `joint`,
    without weight decay.

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
        return [*(told or []), {"params": own, "lr_scale": self.ratio, "weight_decay": 0.0}]

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


@dataclass
class MeasuredBehind(Prepared):
    """A run whose model is tuned behind something: tasks of group target are measured with it, all others without."""

    tuner: Behind

    def served(self, task: Any) -> AbstractContextManager[Any]:
        return nullcontext() if task.group == "target" else self.tuner.attached.off()

    def measure(self, tuned: Any, before: Any) -> Any:
        from luthier.evaluation import Measured

        found = Measured(tuned.name)
        for task in self.tasks:
            with self.served(task):
                said = Prepared.measure(replace(self, tasks=[task]), tuned, before)
            found.tasks |= said.tasks
            found.answers |= said.answers
        return found


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


def drawn(place: Path, tuner: Mapping[str, Any], recipe: config.Recipe) -> Path:
    """An adapter as it is drawn, for the comparisons that have no first stage."""
    loaded = load(recipe.model)
    method = config.build("tuners", dict(tuner), "procedure.tuner").for_data(loaded.tokenizer)
    runs.write_folder(place, method.wrap(loaded.model, loaded.task, recipe.seed).save_pretrained)
    return place


def write_beside(wrapped: Any, name: str, base: Path, part: Path) -> None:
    """Adapter `name` as a peft folder on the tuned model; peft puts all but the default one into a folder of its name."""
    wrapped.save_pretrained(part, selected_adapters=[name])
    for file in sorted((part / name).glob("*")) if (part / name).is_dir() else ():
        file.replace(part / file.name)
    if (part / name).is_dir():
        (part / name).rmdir()
    (part / "README.md").unlink(missing_ok=True)  # peft's names the untuned base
    told = json.loads((part / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = str(base.resolve())
    (part / "adapter_config.json").write_text(json.dumps(told, indent=2))
