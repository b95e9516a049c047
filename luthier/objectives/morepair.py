"""MORepair: learn the repair of a faulty program, and the same repair with the reason for it.

    loss = (L_repair + guidance L_guided) / (1 + guidance)      L: mean of -log pi(y_n | prompt, past) over the tokens of
                                                                all repairs, and of all guided repairs
         = - [ sum_repair log pi + c sum_guided log pi ] / (N_repair + c N_guided)           c = guidance ratio

    guidance  lambda, how much the second objective weighs; 0: fine-tuning on repairs, at its cost
    ratio     N_repair / N_guided over all training rows, counted by the run where left at 0: a long reason weighs no more
              than a short program. The second form is a mean over tokens, so it does not depend on how a step is split;
              over all rows it is the first form exactly
Start:      log V for a model that knows nothing.
Cost:       one forward pass over the prompt with both answers; the prompt is computed once where that pays.
Paper:      Yang et al., 2024, "Multi-Objective Fine-Tuning for Enhanced Program Repair with LLMs", arXiv:2404.12636; its
            noise on embeddings is train.neftune_noise_alpha.
Departures: the prompt is not trained; the public script trains on it too. Its two means are over the tokens of a row (its
            batches have one); here over those of the data, so that a row with a short repair has no larger say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from luthier.core.batch import Batch, Example, first_answers
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError
from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class MorePair(TokenObjective):
    paper: ClassVar[str] = "arXiv:2404.12636"
    cards: ClassVar[tuple[int, ...]] = (50,)
    rows: ClassVar[tuple[str, ...]] = ("repairs",)

    guidance: float = 1.0
    ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.ratio < 0:
            raise LuthierError(f"objective: guidance {self.guidance} and ratio {self.ratio} must not be negative")

    @classmethod
    def example(cls) -> Self:
        return cls(guidance=0.5, ratio=0.5)

    def for_examples(self, examples: Sequence[Example]) -> Self:
        if self.ratio:
            return self
        pairs: Any = [e.answers for e in examples]  # type: ignore[union-attr]
        return replace(self, ratio=sum(len(a) for a, _ in pairs) / sum(len(b) for _, b in pairs))

    def weight(self, batch: Batch) -> float:
        assert batch.owner is not None
        guided = int((batch.owner % 2).sum())
        return len(batch.owner) - guided + self._share * guided

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.owner is not None
        if self.guidance == 0:
            return super().compute(scorer, first_answers(batch, 2))
        share = torch.tensor([1.0, self._share], dtype=torch.float64, device=batch.owner.device)
        return super().compute(scorer, replace(batch, weights=share[batch.owner % 2]))

    @property
    def _share(self) -> float:
        if self.guidance and not self.ratio:
            raise LuthierError("objective 'morepair' needs the training rows to count tokens: call for_examples first")
        return self.guidance * self.ratio

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -tokens.logp
