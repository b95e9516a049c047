"""A plain float64 base run on hand-built input embeddings, row by row: each row behind the prompt of its own label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.checks._models import World
from luthier.checks.oracles._controls import mixed_rows
from luthier.checks.oracles._tuners import method


def oracle_rows_of_several_labels() -> None:
    def said(world: World, tensors: dict[str, dict[str, Tensor]], weights: dict[str, float], example: Any) -> Tensor:
        (own,) = tensors.values()
        base: Any = world.base().double()
        rows = torch.zeros_like(next(iter(own.values())))
        for label, weight in weights.items():
            rows = rows + weight * own[f"rows.{label}"]
        embedded = base.get_input_embeddings()(torch.tensor(example.ids))
        return base(inputs_embeds=torch.cat([rows, embedded])[None]).logits[:, len(rows) :]

    mixed_rows(method(__name__), said)
