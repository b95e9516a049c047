"""Green LoRA: low-rank pairs only where they pay, within a budget of operations.

    W' = W + (alpha / r) B A   for the matrices in m,    m = argmax sum_{k in m} I_k   s.t.   F + T(m) <= budget (F + T(all))

    budget  share of the operations of full fine-tuning of the same model, forward pass F included
    T(m)    what passing gradients down to the deepest pair costs, and the pairs' own gradients
    I_k     first-order fall of the loss along the optimiser's own step on pair k (A and B together)
    r, alpha, dropout, targets   as in lora; `targets` are the candidates
Start:      B = 0: exactly the base model. Before the loop has shown its data, every pair may move.
Cost:       forward and backward together at most `budget` of full fine-tuning. Pairs that were not chosen stay zero.
Paper:      the selection of Huang et al., 2023, arXiv:2309.13192, section 3, applied to the pairs of Hu et al., 2021,
            arXiv:2106.09685.
Departures: this combination is in neither paper. Pairs are placed once, on the first batches. At the start A has no
            gradient, since B = 0: a pair is judged by what B's first step promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import nn

from luthier.core.anatomy import in_task_head
from luthier.core.budget import backward_budget, best_set, note
from luthier.core.method import LuthierError
from luthier.core.probe import Probe
from luthier.core.trainable import Selection
from luthier.tuners._lora import LoRAFamily


@dataclass(frozen=True)
class GreenLora(LoRAFamily):
    paper: ClassVar[str] = "arXiv:2309.13192"
    cards: ClassVar[tuple[int, ...]] = (65,)

    targets: tuple[str, ...] = ("all",)
    budget: float = 0.5

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0, budget=0.6)

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise LuthierError(f"tuner.budget is {self.budget}: a number above 0 and at most 1")

    @property
    def chooses(self) -> bool:
        return True

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        pairs: dict[str, list[str]] = {}
        head: list[str] = []
        rest: list[str] = []
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                pairs.setdefault(name.split(".lora_")[0], []).append(name)
            elif parameter.requires_grad and in_task_head(name):
                head.append(name)
            elif "original_module" not in name:
                rest.append(name)
        units = {**pairs, "head": head, "base": rest}  # the base never moves: it makes the whole that shares are of
        cost = probe.cost(units)
        tensors = probe.importance([n for names in pairs.values() for n in names])
        importance = [sum(tensors[n] for n in pairs.get(unit, ())) for unit in cost.units]
        room = backward_budget(self.budget, cost, "tuner.budget")
        chosen = best_set(cost, importance, room, cost.bits(["head"]))
        moving = [n for unit in cost.names(chosen.bits) for n in units[unit]]
        if not any(".lora_" in n for n in moving):
            raise LuthierError("no pair promises a lower loss within tuner.budget: raise it, or lower learning_rate")
        return Selection(whole=set(moving), note=note(cost, chosen, importance, room))
