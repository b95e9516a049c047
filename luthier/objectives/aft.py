"""AFT: better answers are to have the higher log-probability a token, while the worse ones are held in a sensible range.

    loss = log( 1 + sum over i better than j of [ exp(s_j - s_i) + held ] ) - w * s_best

    s = logp / n, log-probability of an answer a token     (K,), K answers of a prompt
    constraint how the worse answers are held. Nothing in the first term ends their fall, and a chain of thought that is
               nearly right shares most of its tokens with right ones:
        none      held = 0
        detached  held = 0, and s_j carries no gradient: worse answers are only a yardstick
        boundary  held = exp(T_ij - s_j),   T_ij = sg(2 min of s_k over k better than j - 2 beta - s_i): the slope on s_j is
                  0 at beta under the lowest answer that is better; above it s_j is pushed down, below it up
    beta       width of the boundary, in nats a token
    sft_weight w
Start:      log(1 + m [1 + exp(-2 beta)]) + w log V for a model that knows nothing, m ordered pairs (boundary).
Paper:      Wang et al., 2023, "Making Large Language Models Better Reasoners with Alignment", arXiv:2309.02144.
Departures: none known. T follows from the property that the paper asks of it. Right or wrong (two scores) and ranked
            answers are one formula. A prompt whose answers are all of one kind is imitation alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.objectives._family import Group, GroupObjective


@dataclass(frozen=True)
class AFT(GroupObjective):
    paper: ClassVar[str] = "arXiv:2309.02144"
    cards: ClassVar[tuple[int, ...]] = (39,)
    idle: ClassVar[bool] = True

    constraint: Literal["boundary", "detached", "none"] = "boundary"
    beta: float = 0.15
    sft_weight: float = 1.0

    def loss(self, group: Group) -> Tensor:
        s, above = group.means, group.above
        worse = s.detach() if self.constraint == "detached" else s
        exponents = [s.new_zeros(1), (worse[None] - s[:, None])[above]]
        if self.constraint == "boundary":
            fixed = s.detach()
            lowest = fixed[:, None].where(above, torch.inf).amin(0)  # (K,) of the answers better than j
            turning = 2 * lowest[None] - 2 * self.beta - fixed[:, None]
            exponents.append((turning - s[None])[above])
        return torch.logsumexp(torch.cat(exponents), 0) - self.sft_weight * s[group.best]
