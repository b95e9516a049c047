"""Speculative decoding: a small model drafts, the large one verifies several tokens in one pass; nothing else changes.

    accept a draft x ~ q with probability min(1, p(x) / q(x));   where it is refused, y ~ (p - q)_+ / sum (p - q)_+
    p, q (B, V)  what the large and the draft model would draw from, after temperature, top_k and top_p of both

    draft        the small model, of the same tokenizer;  tokens  k, how many it drafts at a time
    temperature  0 is greedy: the large model's greedy tokens, exactly
    top_p, top_k as in nucleus
Each generation says how many drafts were made and accepted, and how often the large model was run after the prompt.
Random state: one number for each draft, for each draft that is verified, and for the token after them, of each row's own.
Cost:       (n accepted + 1) tokens for one forward of k + 1 tokens of the large model and k + 1 of the draft model.
Paper:      Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192,
            algorithm 1; Chen et al., 2023, arXiv:2302.01318.
Departures: batches: rows accept different numbers of drafts, and caches are re-packed. Encoder-decoder models, whose
            decoders count positions by columns, take their rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from luthier.core.method import Decoder, Generation, Limits, LuthierError
from luthier.core.mixture import common_width
from luthier.core.subject import at_rest
from luthier.decoding._mixing import CompanyDecoder, certain, nucleus_probability, plain_choice, speculate, stream


@dataclass(frozen=True)
class Speculative(CompanyDecoder):
    paper: ClassVar[str] = "arXiv:2211.17192"
    cards: ClassVar[tuple[int, ...]] = (13,)
    roles: ClassVar[tuple[str, ...]] = ("draft",)

    draft: Any = None
    tokens: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.tokens < 1:
            raise LuthierError("speculative needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 and tokens >= 1")

    @classmethod
    def example(cls) -> Self:
        return cls(draft="draft", tokens=3)

    def alone(self) -> Decoder:
        return plain_choice(self.temperature, self.top_p, self.top_k)

    def probability(self, scores: Tensor) -> Tensor:
        if self.temperature == 0:
            return certain(scores)
        return nucleus_probability(scores, self.temperature, self.top_p, self.top_k)

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        small = self.model_of(self.draft, model)
        width = common_width([model, small], self.size)

        def probability(scores: Tensor) -> Tensor:
            return self.probability(scores[:, :width])

        with at_rest(model), at_rest(small):
            large, little = stream(model, limits.pad_id), stream(small, limits.pad_id)
            return speculate(large, little, ids, limits, probability, self.tokens)
