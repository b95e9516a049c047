"""HFT, half fine-tuning: a random half of every layer's matrices stays at its old value in each training stage.

    theta = {moving, still};   moving <- moving - eta * grad L(theta);   still <- still

    share     p, share of the body that stays still (0: full fine-tuning)
    level     "category": of q k v o two stay still in each layer; of up gate down one or two (1.5 L in all); of the
              norms of a layer one.  "layer": whole layers.  "model": any matrices of the body
    reselect  when a new half is drawn: "stage" (each run), "epoch" or "never" (the seed alone decides)
    balance   "count" as in the paper, or "params": counts are corrected until the still share of body parameters is
              nearest to p (with grouped queries, two of four matrices are not half of the attention)
Start:      the base model. Embeddings, head and final norm always move; biases follow their matrix.
Cost:       no gradient and no optimiser state for the still half: about 1/6 less arithmetic a step.
Paper:      Hui et al., 2024, "HFT: Half Fine-Tuning for Large Language Models", arXiv:2404.18466, section 3.
Departures: fused projections are split into blocks that stay still exactly (core/trainable.py). For p other than 1/2
            counts are rounded down over the layers of a category, the surplus falling on random layers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from luthier.core.anatomy import anatomy
from luthier.core.halves import draw, everything_but, rebalance
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class HFT(PartialTuner):
    paper: ClassVar[str] = "arXiv:2404.18466"
    cards: ClassVar[tuple[int, ...]] = (5,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate", "reselect"})

    share: float = 0.5
    level: Literal["category", "layer", "model"] = "category"
    reselect: Literal["stage", "epoch", "never"] = "stage"
    balance: Literal["count", "params"] = "count"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise LuthierError(f"tuner.share is {self.share}: a number from 0 to 1")

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        body = anatomy(model)
        still = draw(body, self.share, self.level, rng)
        if self.level == "category" and (self.balance == "params" or self.share not in (0, 0.5, 1)):
            still = rebalance(model, body, still, self.share, rng)
        return everything_but(model, body, still)
