"""LLRD, layer-wise learning-rate decay: every parameter moves, and the lower it lies, the more slowly.

    rate(head) = eta      rate(block l) = eta * decay^(L - l)      rate(embeddings) = eta * decay^(L + 1)

    L, l    number of blocks, and a block's place from 0 at the bottom
    decay   0 < decay <= 1; 1 is full fine-tuning
Start:      the base model. Final norm and pooler have the head's rate. A schedule scales all rates alike.
Cost:       that of full fine-tuning.
Paper:      Tinn et al., 2023, "Fine-Tuning Large Neural Language Models for Biomedical Natural Language Processing",
            arXiv:2112.07869; Clark et al., 2020 (ELECTRA), arXiv:2003.10555, appendix.
Departures: an encoder and a decoder are counted each from its own top. A language head that is tied to the embeddings is
            the embeddings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection
from luthier.tuners._partial import decayed


@dataclass(frozen=True)
class LLRD(PartialTuner):
    paper: ClassVar[str] = "arXiv:2112.07869"
    cards: ClassVar[tuple[int, ...]] = (46,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise LuthierError(f"tuner.decay is {self.decay}: a number above 0 and at most 1")

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        return Selection(whole={n for n, _ in model.named_parameters()})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return decayed(model, self.decay)
