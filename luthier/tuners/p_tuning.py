"""P-tuning: prompt vectors that come out of a small network, which is folded away after training.

    P = MLP(Z)  or  MLP(BiLSTM(Z))             Z (m, D) trained, P (m, D) in front of the input embeddings

    tokens   m
    encoder  "mlp": D -> H -> H -> D; "lstm": a bidirectional LSTM of width H, then 2H -> 2H -> D; ReLU between
    hidden   H; None: D
    layers   layers of the LSTM
Start:      not the base model: the prompt is there from the first step. Z is N(0, 1), the network as PyTorch makes it.
Cost:       m D + 2 D H + H^2 + 2 H + D scalars (mlp) in training; folded, m D for serving: `core.adapt.folded`.
Paper:      Liu et al., 2021, "GPT Understands, Too", arXiv:2103.10385, section 3.2.
Departures: the prompt stands in front of the input rather than inside a template, as in peft; the MLP alone is peft's
            and NVIDIA's variant. No dropout, so that folding is exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import PromptPart
from luthier.core.anatomy import anatomy
from luthier.tuners._prompts import FoldableTuner


class EncodedPrompt(PromptPart):
    def __init__(self, tokens: int, width: int, hidden: int, encoder: str, layers: int):
        super().__init__()
        self.Z = nn.Parameter(torch.randn(tokens, width))
        self.lstm: nn.LSTM | None = None
        sizes: tuple[int, ...] = (width, hidden, hidden, width)
        if encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
            sizes = (2 * hidden, 2 * hidden, width)
        steps: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            steps += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp = nn.Sequential(*steps[:-1])

    @property
    def tokens(self) -> int:
        return len(self.Z)

    def prompt(self) -> Tensor:
        states: Tensor = self.Z
        if self.lstm is not None:
            states = self.lstm(states[None])[0][0]  # (m, 2 H)
        return self.mlp(states)


@dataclass(frozen=True)
class PTuning(FoldableTuner):
    paper: ClassVar[str] = "arXiv:2103.10385"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate", "fold"})
    learning_rate: ClassVar[float] = 5e-3

    tokens: int = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: int | None = None
    layers: int = 2

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=4, hidden=24)

    def sizes(self, width: int) -> tuple[int, int]:
        return self.tokens, 0

    def whole(self, width: int, table: Tensor) -> PromptPart:
        return EncodedPrompt(self.tokens, width, self.hidden or width, self.encoder, self.layers)

    def parameter_count(self, model: nn.Module) -> int:
        D, m = anatomy(model).width, self.tokens
        if self.folded:
            return m * D
        H = self.hidden or D
        if self.encoder == "mlp":
            return m * D + (D + 1) * H + (H + 1) * H + (H + 1) * D
        inputs = [D] + [2 * H] * (self.layers - 1)
        lstm = sum(2 * 4 * H * (i + H + 2) for i in inputs)
        return m * D + lstm + (2 * H + 1) * 2 * H + (2 * H + 1) * D
