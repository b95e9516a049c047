"""Context SFT: maximum likelihood of what counts in a row, and of the labels of the examples in the prompt before it.

    loss = - [ sum_n log pi(y_n | past) + A sum_j decay^(a_j + 1) log pi(c_j | c_<j) ] / N

    c_j    label tokens in the context of a prompt tuner that has one (cpt), a_j = 0 in its last example, 1 before it ...
    decay  gamma; 1: all labels of the context count fully
    A, N   rows and scored tokens of the whole step: the context is in front of each row, and says the same in each
Start:      log V for a model that knows nothing, where the prompt has no labels: then this is SFT.
Paper:      Blau et al., 2024, "Context-aware Prompt Tuning", arXiv:2410.17222; weights as in peft 0.21.
Departures: the sum is divided by the rows' own tokens; peft's mean over all label tokens makes the size of the loss
            depend on the number of examples. The context is causal, so its labels are scored once a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.adapt import PromptLabel, prompt_labels, prompt_states
from luthier.core.batch import Batch
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss
from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class ContextSFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2410.17222"
    cards: ClassVar[tuple[int, ...]] = (52,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised", "parallel")

    decay: float = 0.95

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        m, labels = prompt_labels(scorer.plain)
        if not labels:
            return super().compute(scorer, batch)
        with prompt_states(scorer.plain):
            logp = scorer.token_logp(_with_labels(batch, m, labels))
        context, own = logp[: len(labels)], logp[len(labels) :]
        weights = torch.ones_like(own) if batch.weights is None else batch.weights.to(own)
        omega = torch.tensor([self.decay ** (label.age + 1) for label in labels]).to(context)
        A, N = batch.answers, self.weight(batch)
        figures = {"context_loss": (-A * context.detach().mean(), float(A))}
        return Loss(-(own * weights).sum() - A * (omega * context).sum(), N, figures)


def _with_labels(batch: Batch, m: int, labels: list[PromptLabel]) -> Batch:
    """Scored positions in the grid (B, m + T): the labels of the prompt, in its first row, then those of the batch."""
    assert batch.source is not None and batch.target is not None
    T = batch.ids.shape[1]
    own = batch.source + m * (batch.source // T + 1)
    before = torch.tensor([label.row - 1 for label in labels], device=own.device)
    tokens = torch.tensor([label.token for label in labels], device=own.device)
    return replace(batch, source=torch.cat([before, own]), target=torch.cat([tokens, batch.target]))
