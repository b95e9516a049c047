"""DePT: a short soft prompt and a low-rank correction of the frozen input embeddings, in place of a long prompt.

    input = [P ; E(x_1) + c (A B)_1 ... E(x_n) + c (A B)_n],    c = alpha / sqrt R,    nothing added from position s on

    tokens      m, rows of P (m, D)
    max_length  s, rows of A (s, R): one for each position of the input
    r           R, rows of B (R, D); None: the largest R with m D + R (s + D) <= l D
    budget      l, the length of the prompt that this one replaces
    alpha       8
    init, ids   how P starts: rows drawn from the embedding table, normal, or those of the tokens `ids` (an
                instruction), cycled or cut to m
    lr_ratio    rate of A, B and a task head over the rate of P. Two rates are part of the method: one rate for all loses
Start:      B = 0: exactly prompt tuning with P. A Kaiming-uniform (a = sqrt 5).
Cost:       m D + R (s + D) scalars; sequences are m rather than l positions longer. Folded: (m + s) D plain numbers.
Paper:      Shi and Lipani, 2024, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", arXiv:2309.05173,
            section 2.2.
Departures: A is indexed by positions from the mask (the released code adds all s rows to batches padded to s);
            generated tokens are corrected as in training, while their position is below s. The scale alpha / sqrt R is
            the released code's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from luthier.core.adapt import PromptPart
from luthier.tuners._prompts import DecomposedPart, DecomposedTuner


@dataclass(frozen=True)
class DePT(DecomposedTuner):
    paper: ClassVar[str] = "arXiv:2309.05173"
    cards: ClassVar[tuple[int, ...]] = (66,)

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=3, r=2, max_length=7)  # shorter than most inputs of the checks

    def whole(self, width: int, table: Tensor) -> PromptPart:
        return DecomposedPart(self.start(table), self.max_length, self.rank(width), self.alpha)
