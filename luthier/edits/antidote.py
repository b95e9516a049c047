"""Antidote: after tuning, the weights that matter most for unwanted answers become zero, once. Nothing is trained.

    S_ij = |W_ij| ||X_j||_2            X_j: feature j of the matrix's inputs over all tokens of D_h, at the tuned model
    W_ij = 0 where S_ij is among the floor(share n) largest of row i             n: inputs; a row: what one output reads

    D_h       rows of prompts with unwanted answers that the operator gives: the edit's data
    share     alpha, of every row that goes
    matrices  roles of a fully tuned model that are pruned
    score     "wanda", as above; "magnitude" (no data) and "random" are for comparison
    seed      of the random score
An adapter is pruned in its factors A and B, each with its own inputs, and its base stays as it is; the merged model of any
other checkpoint is pruned itself.
Start:      share 0 is the tuned model; share 1 of an adapter is its base.
Cost:       one forward pass over D_h, with the model in memory.
Paper:      Huang et al., 2024, "Antidote: Post-fine-tuning Safety Alignment for Large Language Models against Harmful
            Fine-tuning", arXiv:2408.09600, section 4.
Departures: none known. All scores are those of the unpruned model. It is a repair to be judged on other rows than D_h, and
            next to what dropping the adapter does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.anatomy import Weight
from luthier.core.method import Refusal
from luthier.core.ranking import largest_in_rows, share_of
from luthier.edits._family import Places, Pruning, State, between

FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Antidote(Pruning):
    paper: ClassVar[str] = "arXiv:2408.09600"
    cards: ClassVar[tuple[int, ...]] = (29,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"zeros", "adapter"})

    share: float = 0.1
    matrices: tuple[str, ...] = ("q", "k", "v")
    score: Literal["wanda", "magnitude", "random"] = "wanda"
    seed: int = 0

    def __post_init__(self) -> None:
        between(self.share, 0, 1, "share")

    @property
    def by_data(self) -> bool:
        return self.score == "wanda"

    def roles(self) -> Sequence[str]:
        return self.matrices

    def places(self, states: Sequence[State], model: nn.Module) -> dict[str, Weight]:
        if not hasattr(model, "peft_config"):
            return super().places(states, model)
        modules = dict(model.named_modules())
        out = {}
        for name in states[0]:
            if not any(f in name.split(".") for f in FACTORS):
                raise Refusal(f"antidote prunes the factors of LoRA, and '{name}' of this adapter is none")
            module = f"{name.removesuffix('.weight')}.{model.active_adapter}"
            if isinstance(modules.get(module), nn.Linear):
                out[name] = Weight(module)
        return out

    def gone(self, name: str, scores: Callable[[], Iterator[Tensor]], places: Places) -> Iterator[Tensor]:
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:7], "little")
        draw = torch.Generator().manual_seed(seed)
        for rows in scores():
            ranked = torch.rand(rows.shape, generator=draw) if self.score == "random" else rows
            yield largest_in_rows(ranked, share_of(self.share)(rows.shape[1]))
