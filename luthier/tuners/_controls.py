"""What adapters of several controls share: a block of parameters for every label, and which of them acts.

    theta = theta_c                     for a row that carries label c (`data.keep: [label]`)
    theta = sum_c w_c theta_c           for everything else: w chooses a label, or mixes

B rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapt import BridgedTuner
from luthier.core.method import LuthierError
from luthier.core.rowwise import Rowwise
from luthier.tuners._prompts import start_rows

__all__ = ["start_rows"]

MEAN = "mean"
"""In place of a label: all controls in equal parts."""


class Controls(Rowwise):
    """Which control acts.

    weights  of each label, where rows say nothing;  required  rows of training must say something
    """

    def __init__(self, labels: tuple[str, ...], column: str, control: str):
        super().__init__(column)
        if len(set(labels)) != len(labels) or not labels or not all(n.replace("_", "").isalnum() for n in labels):
            raise LuthierError("tuner.labels: give different names of letters, digits and _ alone")
        self.labels, self.required = labels, not control
        self.choose(control or labels[0])

    def choose(self, told: str | Mapping[str, float]) -> None:
        """A label, `mean`, or a weight for each of some labels. Raises LuthierError."""
        if told == MEAN:
            told = dict.fromkeys(self.labels, 1 / len(self.labels))
        weights = {told: 1.0} if isinstance(told, str) else dict(told)
        for name in weights:
            self._known(name)
        self.weights = weights

    def _known(self, name: str) -> None:
        if name not in self.labels:
            raise LuthierError(f"there is no control '{name}', only {', '.join(self.labels)}")

    def of(self, blocks: nn.ParameterDict) -> Tensor:
        """theta (...), or (B, ...) where rows have labels. Blocks that no row asks for take no part."""
        if self.values is None:
            if self.required and self.training and torch.is_grad_enabled():
                raise LuthierError(
                    f"the rows carry no '{self.column}', so that no control is theirs: add data.keep: [{self.column}]"
                )
            return torch.stack([w * blocks[name] for name, w in self.weights.items()]).sum(0)
        rows = [label_of(v) for v in self.values]
        used = list(dict.fromkeys(rows))
        for name in used:
            self._known(name)
        theta = torch.stack([blocks[name] for name in used])
        return theta[torch.tensor([used.index(name) for name in rows], device=theta.device)]


def label_of(value: Any) -> str:
    """A column's value as a label; true and false as JSON spells them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class ControlTuner(BridgedTuner):
    """labels, by, control: as told in the files of the methods."""

    labels: tuple[str, ...] = ("good", "bad")
    by: str = "label"
    control: str = ""

    def build_shared(self, model: nn.Module) -> Controls:
        return Controls(self.labels, self.by, self.control)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        own = [n for n, p in model.named_parameters() if p.requires_grad and f"luthier_{self.name}" in n]
        return [{"params": own, "weight_decay": 0.0}]


def choose_control(model: nn.Module, told: str | Mapping[str, float]) -> None:
    """Which control of `model`'s adapter acts from here on. Raises LuthierError where there is none."""
    found = [m for m in model.modules() if isinstance(m, Controls)]
    if not found:
        raise LuthierError("a control was asked for, and this model has none: load the folder of its controls")
    for one in found:
        one.choose(weights_of(told) if isinstance(told, str) else told)


def weights_of(told: str) -> str | dict[str, float]:
    """'good' as it is; 'good=0.7,bad=0.3' as weights. Raises LuthierError."""
    if "=" not in told:
        return told
    try:
        return {name.strip(): float(w) for name, w in (part.split("=") for part in told.split(","))}
    except ValueError:
        raise LuthierError(f"control '{told}': give a label, or weights as in good=0.7,bad=0.3") from None
