"""Emulated fine-tuning, down-scaled: what a small model would say, had it been tuned as the large one was.

    log pi = log p_base + log p_tuned - log p_reference - log Z                  p (B, V), Z over the vocabulary, per token

    base         the small pretrained model
    tuned        the large model after tuning;  reference  the large model before
    trusted_top_p, floor, choose  as in eft_upscale
It is the counterpart of up-scaling for taking apart which ability comes from which scale, not a way to save time: the
large models run for every token.
Of base, tuned and reference one is left out: the model that is asked. All read the same prompt.
Identities: base = reference gives the tuned model.
Cost:       a forward of each of the three models per token.
Paper:      Mitchell et al., 2024, "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
            arXiv:2310.12962, section 3.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.decoding._mixing import EmulatedDecoder


@dataclass(frozen=True)
class EFTDownscale(EmulatedDecoder):
    paper: ClassVar[str] = "arXiv:2310.12962"
    cards: ClassVar[tuple[int, ...]] = (13,)
