"""A plain float64 base with the dense product of one label, or of mixed factors, in its weights, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.checks._models import World
from luthier.checks.oracles._controls import mixed_rows
from luthier.checks.oracles._tuners import method, outputs_by_inputs, put


def oracle_rows_of_several_labels() -> None:
    tuner = method(__name__)

    def said(world: World, tensors: dict[str, dict[str, Tensor]], weights: dict[str, float], example: Any) -> Tensor:
        base: Any = world.base().double()
        for name, own in tensors.items():
            A, B = (sum(w * own[f"{part}.{label}"] for label, w in weights.items()) for part in "AB")
            target = base.get_submodule(name)
            put(target, outputs_by_inputs(target) + tuner.alpha / tuner.r * B @ A)
        return base(input_ids=torch.tensor([example.ids])).logits

    mixed_rows(tuner, said)
