"""EPT: a short prompt that reads from the low-rank correction and is mixed from several subspaces, then folded away.

    D' = c A B                                    knowledge source (s, D), added to the embeddings as in DePT
    P_f = P + g softmax(P D'^T / sqrt D) D'       fusion (m, D), g a scalar
    S_k = relu(P_f V_k) U_k                       projections (m, D), V_k (D, b), U_k (b, D), k = 1 .. K
    w = softmax(mean(P_f) W_g + b_g)              gate (K,), W_g (D, K)
    input = [P_f + sum_k w_k S_k ; E(x_i) + D'_i]

    tokens, max_length, r, budget, alpha, init, ids, lr_ratio    as in DePT; budget counts everything that is trained
    spaces      K;  bottleneck  b
    fusion      "plain", or "projected": queries P W_q and keys D' W_k with W_q, W_k (D, 32)
    gate        "prompt": one w for the prompt; "token": one for each row (without the mean)
Start:      B = 0, U = 0, W_g = 0, g = 0.1: exactly prompt tuning with P, and DePT with the same seed.
Cost:       m D + R (s + D) + 2 K D b + K (D + 1) + 1 scalars (+ 64 D for projected fusion) in training. The gate reads
            no input, so all folds into (m + s) D plain numbers for serving: `core.adapt.folded`.
Paper:      Lan et al., 2024, "Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion", arXiv:2405.11464.
Departures: the paper's exact formulas were not at hand: a scalar g in place of a feed-forward network, one gate a prompt,
            b = 8 and K = 2 are a reconstruction from its text (K = 4 with b = 8 leaves no room for A and B in 100 rows).
            Gradients reach A and B through the fusion too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import PromptPart
from luthier.tuners._prompts import DecomposedPart, DecomposedTuner

FUSION_WIDTH = 32


class EnrichedPart(DecomposedPart):
    def __init__(self, rows: Tensor, length: int, r: int, alpha: float, spaces: int, bottleneck: int):
        super().__init__(rows, length, r, alpha)  # first, so that P and A start as DePT's
        D = rows.shape[1]
        self.g = nn.Parameter(torch.full((1,), 0.1))
        self.V = nn.Parameter(torch.randn(spaces, D, bottleneck) / math.sqrt(D))
        self.U = nn.Parameter(torch.zeros(spaces, bottleneck, D))
        self.W_g = nn.Parameter(torch.zeros(D, spaces))
        self.b_g = nn.Parameter(torch.zeros(spaces))
        self.by_row = False
        self.W_q: nn.Parameter | None = None
        self.W_k: nn.Parameter | None = None

    def fused(self) -> Tensor:
        source = self.correction()  # (s, D)
        q: Tensor = self.rows
        k = source
        if self.W_q is not None and self.W_k is not None:
            q, k = q @ self.W_q, k @ self.W_k  # (m, h), (s, h)
        looks = torch.softmax(q @ k.T / math.sqrt(q.shape[1]), -1)  # (m, s)
        return self.rows + self.g * (looks @ source)

    def weights(self, fused: Tensor) -> Tensor:
        """(m or 1, K), rows sum to 1."""
        z = fused if self.by_row else fused.mean(0, keepdim=True)
        return torch.softmax(z @ self.W_g + self.b_g, -1)

    def prompt(self) -> Tensor:
        fused = self.fused()  # (m, D)
        spaces = torch.relu(fused @ self.V) @ self.U  # (K, m, D)
        return fused + (self.weights(fused).T[..., None] * spaces).sum(0)


@dataclass(frozen=True)
class EPT(DecomposedTuner):
    paper: ClassVar[str] = "arXiv:2405.11464"
    cards: ClassVar[tuple[int, ...]] = (4,)

    spaces: int = 2
    bottleneck: int = 8
    fusion: Literal["plain", "projected"] = "plain"
    gate: Literal["prompt", "token"] = "prompt"

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=3, r=2, max_length=7, spaces=2, bottleneck=3)

    def whole(self, width: int, table: Tensor) -> PromptPart:
        rows = self.start(table)
        part = EnrichedPart(rows, self.max_length, self.rank(width), self.alpha, self.spaces, self.bottleneck)
        part.by_row = self.gate == "token"
        if self.fusion == "projected":
            part.W_q, part.W_k = (nn.Parameter(torch.randn(width, FUSION_WIDTH) / math.sqrt(width)) for _ in range(2))
        return part

    def spent(self, width: int) -> int:
        K, D = self.spaces, width
        projected = 2 * D * FUSION_WIDTH if self.fusion == "projected" else 0
        return 2 * K * D * self.bottleneck + K * (D + 1) + 1 + projected
