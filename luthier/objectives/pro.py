"""PRO: each of a prompt's answers, best first, against all that are worse, as a choice among them; the best is imitated.

    loss = - sum_k log [ exp(s_k c_kk) / ( exp(s_k c_kk) + sum over j worse than k of exp(s_j c_kj) ) ] - w * s_best

    s = logp / n, log-probability of an answer a token     (K,), K answers
    c_kj       r_k - r_j, by how much k is scored above j, and c_kk = max_j c_kj (sharpened); 1 where not
    sharpen    whether scores sharpen the choice, or order it alone
    sft_weight w
    detached   s_j carries no gradient: worse answers are only a yardstick, and nothing is pushed down
Start:      a model that knows nothing has all s equal: sum_k log(1 + m_k) + w log V where nothing is sharpened, m_k
            answers worse than k.
Paper:      Song et al., 2023, arXiv:2306.17492, section 3; detached: the constraint of Wang et al., 2023,
            arXiv:2309.02144.
Departures: an answer competes with those of a lower score alone; the paper ranks without ties. Imitation is a mean over
            tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.objectives._family import Group, GroupObjective


@dataclass(frozen=True)
class PRO(GroupObjective):
    paper: ClassVar[str] = "arXiv:2306.17492"
    cards: ClassVar[tuple[int, ...]] = (39,)
    idle: ClassVar[bool] = True

    sharpen: bool = True
    sft_weight: float = 0.05
    detached: bool = False

    def loss(self, group: Group) -> Tensor:
        s, above = group.means, group.above
        worse = s.detach() if self.detached else s
        gaps = (group.scores[:, None] - group.scores[None]) if self.sharpen else torch.ones_like(above, dtype=s.dtype)
        total = -self.sft_weight * s[group.best]
        for k in above.any(1).nonzero()[:, 0].tolist():
            c = gaps[k][above[k]]
            own = s[k] * c.max()
            total = total + torch.logsumexp(torch.cat([own[None], worse[above[k]] * c]), 0) - own
        return total
