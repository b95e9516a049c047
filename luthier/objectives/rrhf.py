"""RRHF: a hinge for each pair of a prompt's answers that is in the wrong order, plus imitation of the best.

    loss = sum over i better than j of max(0, s_j - s_i) - w * s_best,      s = logp / n               s (K,), K answers

    n          tokens of an answer
    sft_weight w
    detached   s_j carries no gradient: worse answers are only a yardstick, and nothing is pushed down
Start:      w log V for a model that knows nothing.
Paper:      Yuan et al., 2023, arXiv:2304.05302, section 3; detached: the constraint of Wang et al., 2023, arXiv:2309.02144.
Departures: imitation is a mean over tokens, as in the public code, on the scale of the scores; the paper writes a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.objectives._family import Group, GroupObjective


@dataclass(frozen=True)
class RRHF(GroupObjective):
    paper: ClassVar[str] = "arXiv:2304.05302"
    cards: ClassVar[tuple[int, ...]] = (39,)
    idle: ClassVar[bool] = True

    sft_weight: float = 1.0
    detached: bool = False

    def loss(self, group: Group) -> Tensor:
        s = group.means
        worse = s.detach() if self.detached else s
        wrong = torch.relu(worse[None] - s[:, None])[group.above]
        return wrong.sum() - self.sft_weight * s[group.best]
