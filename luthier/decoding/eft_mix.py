"""Emulated fine-tuning, mixed: several tuned behaviours dialled in at decoding time, without training.

    log pi = log p_base + sum_i w_i (log p_tuned_i - log p_reference) - log Z     p (B, V), Z over the vocabulary, per token

    base         a pretrained model of any size
    tuned        models that were tuned from the reference, each to another end
    reference    the model that they were tuned from
    weights      w_i, one for each; they need not sum to 1: (l, 1 - l) moves between two behaviours
    floor, choose  as in eft_upscale
Base or reference is left out: the model that is asked. All read the same prompt.
Identities: weights (1, 0, ...) give eft_upscale with the first tuned model, to the last bit.
Cost:       a forward of the base, of the reference and of every tuned model of weight other than 0 per token.
Paper:      Mitchell et al., 2024, "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
            arXiv:2310.12962, section 3.2 (test-time reward interpolation, of two rewards).
Departures: any number of rewards, and no hidden renormalisation of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from luthier.core.method import LuthierError
from luthier.decoding._mixing import MixingDecoder


@dataclass(frozen=True)
class EFTMix(MixingDecoder):
    paper: ClassVar[str] = "arXiv:2310.12962"
    cards: ClassVar[tuple[int, ...]] = (13,)
    roles: ClassVar[tuple[str, ...]] = ("base", "tuned", "reference")
    asked: ClassVar[tuple[str, ...]] = ("base", "reference")

    base: Any = None
    tuned: tuple[Any, ...] = ()
    reference: Any = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != len(self.tuned):
            raise LuthierError(
                f"eft_mix has {len(self.tuned)} tuned models and {len(self.weights)} weights: give one each"
            )

    @classmethod
    def example(cls) -> Self:
        return cls(tuned=("one", "other"), reference="reference", weights=(0.75, 0.5))

    def terms(self) -> list[tuple[str | tuple[str, int], float, Any]]:
        tuned: list[tuple[str | tuple[str, int], float, Any]] = [
            (("tuned", i), w, "") for i, w in enumerate(self.weights)
        ]
        return [("base", 1.0, ""), *tuned, ("reference", -sum(self.weights), "")]
