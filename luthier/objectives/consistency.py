"""Consistency: learn an answer under several wordings of its question, and to treat the wordings alike.

    loss = (1 - alpha) task + alpha align                     of a row, then the mean over the rows of a step
    task   mean over wordings m = 0 ... M, and over the tokens of the answer, of -log pi(y_t | x_m, y_<t)
    align  mean over m = 1 ... M of how far wording m is from the reference wording 0 where the answer begins:
             hidden         1 - cos(h_m, h_0)                                      h (D,) last state, as the head sees it
             output_kl      sum_v p_0(v) (log p_0(v) - log p_m(v))                 p (V,) of the answer's first token
             similarity_kl  sum_j P_0(j) (log P_0(j) - log P_m(j)),                P_m(j) ~ 1 / (1 + |h_m - h_m^j|^2) over
                            the other rows j: every wording keeps the same neighbours

    alpha  weight of `align`; 0: tuning on the wordings alone
    stop_gradient  the reference wording is a target that does not move
Start:      (1 - alpha) log V for a model that knows nothing, with output_kl.
Cost:       one forward pass over all wordings; the beginning that they share is computed once where that pays.
Paper:      Sun et al., 2023, "Evaluating the Zero-shot Robustness of Instruction-tuned Language Models",
            arXiv:2306.11270, section 5.
Departures: the paper's divergence is not fully specified, so three are here. Any tuner may learn, not only a soft prompt.
            similarity_kl compares rows of a micro-batch, so it depends on how a step is split; it needs equally many
            wordings a row. Dropout would be measured as disagreement: switch it off in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer, kl
from luthier.core.method import Loss, LuthierError, Objective


@dataclass(frozen=True)
class Consistency(Objective):
    paper: ClassVar[str] = "arXiv:2306.11270"
    cards: ClassVar[tuple[int, ...]] = (35,)
    rows: ClassVar[tuple[str, ...]] = ("wordings",)

    alpha: float = 0.5
    align: Literal["hidden", "output_kl", "similarity_kl"] = "hidden"
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise LuthierError(f"objective: alpha {self.alpha} must lie between 0 and 1")

    @classmethod
    def example(cls) -> Self:
        return cls(align="output_kl")

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows.unique_consecutive()))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.owner is not None
        of, counts = batch.rows.unique_consecutive(return_inverse=True, return_counts=True)[1:]  # group of each answer
        tokens = batch.owner.bincount(minlength=batch.answers)
        logp, states, logits = scorer.look(batch, tokens.cumsum(0) - tokens)  # where each answer begins: (A, D), (A, V)
        task = -(logp / (tokens * counts[of])[batch.owner]).sum()
        first = (counts.cumsum(0) - counts)[of]  # the reference wording of each answer
        further = first != torch.arange(len(of), device=of.device)
        gaps = self.gaps(states, logits, first, counts)[further] / (counts[of][further] - 1)
        align, n = gaps.sum().to(task.dtype), self.weight(batch)
        figures = {"task": (task.detach(), n), "align": (align.detach(), n)}
        return Loss((1 - self.alpha) * task + self.alpha * align, n, figures)

    def gaps(self, states: Tensor, logits: Tensor, first: Tensor, counts: Tensor) -> Tensor:
        """(A,) how far each answer's beginning is from that of answer `first` (A,)."""
        if self.align == "hidden":
            states = states.to(logits.dtype)
            return 1 - F.cosine_similarity(states, self._target(states[first]), dim=-1)
        if self.align == "output_kl":
            logp = logits.log_softmax(-1)
            return kl(self._target(logp[first]), logp)
        if len(counts.unique()) > 1:
            raise LuthierError("objective: align similarity_kl needs equally many wordings in every row")
        by_wording = states.to(logits.dtype).unflatten(0, (-1, int(counts[0]))).transpose(0, 1)  # (M + 1, G, D)
        near = -torch.log1p((by_wording[:, :, None] - by_wording[:, None]).square().sum(-1))  # (M + 1, G, G)
        G = near.shape[1]
        others = near[:, ~torch.eye(G, dtype=torch.bool, device=near.device)].view(len(near), G, G - 1).log_softmax(-1)
        return kl(self._target(others[0]), others).transpose(0, 1).flatten()

    def _target(self, x: Tensor) -> Tensor:
        return x.detach() if self.stop_gradient else x
