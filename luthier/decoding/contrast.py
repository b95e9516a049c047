"""Contrastive decoding: a strong model, away from what a weak one would say as well.

    z = (1 + beta) z_expert - beta log p_amateur   where p_expert(v) >= alpha max p_expert,   -inf elsewhere      z (B, V)

    expert       the strong model;  amateur  a weaker one (smaller, or earlier in training)
    beta         how far to move away; 0 is the expert on its plausible tokens
    alpha        share of the expert's likeliest token below which a token is ruled out; 0: none is
    floor        as in core/mixture.py;  choose  greedy, nucleus, beam, ... on softmax(z)
    amateur_prompt  a text with {prompt}, where the amateur reads another prompt
Expert or amateur is left out: the model that is asked.
Identities: expert = amateur: the expert on its plausible tokens, so that greedy tokens are the expert's.
Cost:       a forward of both models per token.
Paper:      O'Brien and Lewis, 2023, "Contrastive Decoding Improves Reasoning in Large Language Models", arXiv:2309.09117,
            section 2.1, after Li et al., 2023, arXiv:2210.15097.
Departures: none from the later paper. The earlier one ranks by log p_expert - log p_amateur alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from luthier.core.method import LuthierError
from luthier.decoding._mixing import MixingDecoder


@dataclass(frozen=True)
class Contrast(MixingDecoder):
    paper: ClassVar[str] = "arXiv:2309.09117"
    roles: ClassVar[tuple[str, ...]] = ("expert", "amateur")
    asked: ClassVar[tuple[str, ...]] = ("expert", "amateur")

    expert: Any = None
    amateur: Any = None
    beta: float = 0.5
    alpha: float = 0.1
    amateur_prompt: Any = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or not 0 <= self.alpha <= 1:
            raise LuthierError("contrast needs beta of at least 0 and alpha between 0 and 1")

    @classmethod
    def example(cls) -> Self:
        return cls(amateur="amateur")

    def terms(self) -> list[tuple[str | tuple[str, int], float, Any]]:
        return [("expert", 1 + self.beta, ""), ("amateur", -self.beta, self.amateur_prompt)]

    def options(self) -> dict[str, Any]:
        return {"plausible": self.alpha}
