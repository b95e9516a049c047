"""Proxy-tuning: a large model is steered, token by token, by the difference that tuning made to a small one.

    z = z_base + alpha (log p_expert - log p_anti_expert),      p = softmax(z)                           z, log p (B, V)

    base         the large model; nothing is written to it
    expert       the small model after tuning;  anti_expert  the small model before
    alpha        0 is the base, 1 the paper's, above 1 amplifies
    expert_prompt, anti_expert_prompt   a text with {prompt} where the prompt goes (a chat template, an instruction);
                 empty: the same prompt as the base. All continue with the same tokens
    top          k: only the base's k likeliest tokens are combined, all others are ruled out: a base behind an interface
                 that returns no more than these
    floor        as in core/mixture.py;  choose  greedy, nucleus, beam, ...: applied to p, after the sum
    draft_tokens how many tokens the expert drafts and the sum verifies; 0: none
Of base, expert and anti_expert one is left out: the model that is asked. A recipe that tunes the small model and leaves
the expert out reports the base alone before tuning and the steered base after.
Identities: expert = anti_expert, or alpha = 0: the base, to the last bit. base = anti_expert, alpha = 1: the expert.
Cost:       a forward of each of the three models per token; three caches.
Paper:      Liu et al., 2024, "Tuning Language Models by Proxy", arXiv:2401.08565, section 2.
Departures: the difference is taken of log-probabilities with a floor (the same p where the floor is not reached).
            Rows that pad an embedding table beyond the tokens are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from luthier.core.method import LuthierError
from luthier.decoding._mixing import MixingDecoder


@dataclass(frozen=True)
class ProxyTuning(MixingDecoder):
    paper: ClassVar[str] = "arXiv:2401.08565"
    cards: ClassVar[tuple[int, ...]] = (2,)
    roles: ClassVar[tuple[str, ...]] = ("base", "expert", "anti_expert")
    asked: ClassVar[tuple[str, ...]] = ("base", "expert", "anti_expert")
    drafter: ClassVar[str | None] = "expert"

    base: Any = None
    expert: Any = None
    anti_expert: Any = None
    alpha: float = 1.0
    expert_prompt: Any = ""
    anti_expert_prompt: Any = ""
    top: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 0:
            raise LuthierError(f"proxy_tuning: top is {self.top}: give 0 (all tokens) or more")

    @classmethod
    def example(cls) -> Self:
        return cls(expert="expert", anti_expert="anti_expert")

    def terms(self) -> list[tuple[str | tuple[str, int], float, Any]]:
        return [
            ("base", 1.0, ""),
            ("expert", self.alpha, self.expert_prompt),
            ("anti_expert", -self.alpha, self.anti_expert_prompt),
        ]

    def options(self) -> dict[str, Any]:
        return {"top": self.top}
