"""What oracles of soft prompts share: a run on hand-built input embeddings of a plain base in float64, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.checks._compare import close, differ
from luthier.checks._models import World
from luthier.checks.oracles._tuners import tensors_by_target, trained, worlds

Built = tuple[np.ndarray, np.ndarray | None]
"""Prompt rows (m, D), and what is added to the embedding at each position (s, D), or None."""


def hand_built(tuner: Any, build: Callable[[dict[str, np.ndarray], World], Built]) -> None:
    """`build(tensors, world)` gives prompt and correction; the tuned model says what a plain base says on them."""
    for world in worlds(tuner):
        model, base = trained(tuner, world), world.base()
        tensors = next(t for t in tensors_by_target(model).values() if t)
        rows, table = build({k: v.numpy() for k, v in tensors.items()}, world)
        differ(world.said(model), world.said(base), f"{world.label}: trained model and base")
        for example in world.examples:
            inputs = world.batch([example]).inputs()
            with torch.no_grad():
                found = model(**inputs).logits
                wanted = _by_hand(base.double(), rows, table, inputs, world.kind)
            close(found, wanted, f"{world.label}: logits and those of hand-built embeddings")


def _by_hand(
    base: nn.Module, rows: np.ndarray, table: np.ndarray | None, inputs: dict[str, Tensor], kind: str
) -> Tensor:
    ids = inputs["input_ids"][0].tolist()
    embedding = base.get_input_embeddings().weight.numpy()  # type: ignore[operator]
    sequence = list(rows)
    for position, token in enumerate(ids):
        vector = embedding[token]
        if table is not None and position < len(table):
            vector = vector + table[position]
        sequence.append(vector)
    given: dict[str, Tensor] = {"inputs_embeds": torch.from_numpy(np.stack(sequence))[None]}
    if kind == "encoder-decoder":
        given["decoder_input_ids"] = inputs["decoder_input_ids"]
        return base(**given).logits
    return base(**given).logits[:, len(rows) :]
