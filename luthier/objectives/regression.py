"""Regression: squared error of a task head with one output.

    loss = (z - y)^2                                       z, y (B,)

Start:      the mean square of the targets for a head that says zero.
Paper:      least squares; as a head on an encoder: Devlin et al., 2019, arXiv:1810.04805, section 4.1.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.objectives._family import HeadObjective


@dataclass(frozen=True)
class Regression(HeadObjective):
    paper: ClassVar[str] = "arXiv:1810.04805"
    cards: ClassVar[tuple[int, ...]] = (3, 33)
    problems: ClassVar[tuple[str, ...]] = ("regression",)

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        return (outputs[:, 0] - label.to(outputs)) ** 2
