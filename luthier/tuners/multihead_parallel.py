"""Multi-head parallel adapter: a small network beside attention, in every head and before the heads are mixed.

    head_i' = head_i + s * relu(q_i P_k,i^T) P_v,i           q_i (B, T, d) query of head i;  P_k,i, P_v,i (R, d)

    size    R, rows in each of the H query heads;  scale  s
    act     the non-linearity; a softmax, with a gated addition, would make it a prefix
Start:      P_v = 0: exactly the base model. P_k Kaiming-uniform (a = sqrt 5).
Cost:       2 R H d scalars an attention module; stays in the forward pass at serving time.
Paper:      He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv:2110.04366,
            table 1 and section 4.4.
Departures: q_i is the query that the model itself makes, rotated where it rotates; the released code norms the input of
            W_q once more. Scores are not divided by sqrt d, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import nn

from luthier.core.anatomy import head_sizes
from luthier.core.attention import AttentionTuner
from luthier.tuners._unified import HeadwisePart


@dataclass(frozen=True)
class MultiheadParallel(AttentionTuner):
    paper: ClassVar[str] = "arXiv:2110.04366"
    cards: ClassVar[tuple[int, ...]] = (19,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    size: int = 30
    act: str = "relu"
    scale: float = 1.0

    @classmethod
    def example(cls) -> Self:
        return cls(size=4)

    def build(self, shape: tuple[int, int, int], kind: str) -> HeadwisePart:
        heads, _, features = shape
        return HeadwisePart(self.size, heads, features, self.act, self.scale)

    def parameter_count(self, model: nn.Module) -> int:
        heads, _, features = head_sizes(model)
        return 2 * self.size * heads * features * len(self.target_modules(model))
