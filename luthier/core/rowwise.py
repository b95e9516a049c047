"""Adapters that act on each row of a batch in a way of its own: what the examples carry along says which.

A part of such an adapter has a `Rowwise` module. Before the model runs on a batch, that module is handed the batch's column:
one value a row, from the `extras` of the examples (`data.keep` in a recipe). Whoever asks the model without a batch meets the
adapter's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from luthier.core.batch import Batch
from luthier.core.method import LuthierError


class Rowwise(nn.Module):
    """What the parts of one adapter know of the rows.

    column  name of what the examples carry
    """

    def __init__(self, column: str):
        super().__init__()
        self.column = column
        self._values: Sequence[Any] | None = None
        self._open = False

    @property
    def values(self) -> Sequence[Any] | None:
        """One value for each row of the batch that is running; None: nothing is said of them.

        Layers that are computed a second time in the backward pass (gradient checkpointing) still see those of their batch.
        """
        again = self.training and torch.is_grad_enabled()
        return self._values if self._open or again else None


def rowwise_of(model: nn.Module) -> list[Rowwise]:
    """What a model's adapters know of the rows."""
    return [m for m in model.modules() if isinstance(m, Rowwise)]


@contextmanager
def row_by_row(found: Sequence[Rowwise], batch: Batch) -> Iterator[None]:
    """While their model runs on `batch`, these know the rows. Raises LuthierError for packed rows."""
    for one in found:
        values = batch.extras.get(one.column)
        if values is not None and len(values) != len(batch.ids):
            raise LuthierError(
                f"rows that each have a '{one.column}' cannot share a row of the batch: set train.packing to false"
            )
        one._values, one._open = values, True
    try:
        yield
    finally:
        for one in found:
            one._open = False
