"""Prompt tuning: m trained vectors in front of the input embeddings of a frozen model.

    input = [P ; E(x_1) ... E(x_n)]                                P (m, D), E the frozen embedding table (V, D)

    tokens   m, number of prompt vectors
    init     "vocabulary": rows of the embedding table drawn at random; "normal": N(0, spread of the table)
    ids      tokens of a text to start from instead, cycled or cut to m
Start:      not the base model: the prompt is there from the first step.
Cost:       m D scalars; every sequence is m positions longer.
Paper:      Lester et al., 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691, section 2.
Departures: positions of the text come from the attention mask, so padding on either side changes nothing (peft's own
            type counts padding between prompt and text). In encoder-decoders the prompt is the encoder's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from luthier.core.adapt import PromptTuner
from luthier.core.anatomy import base_transformer
from luthier.tuners._prompts import SoftPrompt, start_rows


@dataclass(frozen=True)
class PromptTuning(PromptTuner):
    paper: ClassVar[str] = "arXiv:2104.08691"
    cards: ClassVar[tuple[int, ...]] = (60, 66)
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate"})

    tokens: int = 20
    init: Literal["vocabulary", "normal"] = "vocabulary"
    ids: tuple[int, ...] = ()

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=4)

    def build(self, width: int, table: Tensor) -> SoftPrompt:
        return SoftPrompt(start_rows(table, self.tokens, self.init, self.ids))

    def parameter_count(self, model: nn.Module) -> int:
        return self.tokens * base_transformer(model).config.hidden_size
