"""Emulated fine-tuning, up-scaled: what a large model would say, had it been tuned as the small one was.

    log pi = beta log p_base + log p_tuned - beta log p_reference - log Z        p (B, V), Z over the vocabulary, per token

    base         the large pretrained model
    tuned        the small model after tuning;  reference  the small model before: log p_tuned - log p_reference is the
                 reward that tuning followed, up to its scale
    beta         1: the paper's up-scaling (proxy_tuning at alpha = 1, the same sums); above 1 the difference between the
                 two pretrained models is amplified
    trusted_top_p  below 1: the sum counts only in this nucleus of the tuned model, elsewhere beta log p_base stands alone
    floor        as in core/mixture.py
    choose       greedy, nucleus, beam, ... on pi. A nucleus here is the other way to keep the noisy tail out
    draft_tokens k: the tuned model drafts k tokens, base and reference read them in one pass each, and they are kept or
                 refused so that what is said is distributed as pi, exactly; 0: none
Of base, tuned and reference one is left out: the model that is asked. All read the same prompt.
Identities: base = reference gives the tuned model.
Cost:       a forward of each of the three models per token, or of base and reference per round of drafts.
Paper:      Mitchell et al., 2024, "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
            arXiv:2310.12962, sections 3 and 3.3.
Departures: the paper normalises token by token, as here. Which nucleus stabilises its up-scaling is not said in detail:
            both readings are offered (`choose: nucleus`, `trusted_top_p`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.method import LuthierError
from luthier.decoding._mixing import EmulatedDecoder


@dataclass(frozen=True)
class EFTUpscale(EmulatedDecoder):
    paper: ClassVar[str] = "arXiv:2310.12962"
    cards: ClassVar[tuple[int, ...]] = (13,)
    drafter: ClassVar[str | None] = "tuned"

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise LuthierError(f"eft_upscale: beta is {self.beta}: give more than 0")

    @property
    def strength(self) -> float:
        return self.beta
