"""GreenTrainer: every few epochs, train the tensors that promise the largest fall of the loss within a budget of operations.

    m = argmax sum_{k in m} I_k   subject to   F + T(m) <= budget (F + T(all))
    T(m) = sum_{k in m} dw_k + sum_{operators between a tensor of m and the loss} dy_op
    I_k  = - < grad_k(W + dW), dW_k >,       dW the optimiser's own next step on all tensors

    budget    share of the operations of full fine-tuning, forward pass F included
    interval  epochs between two choices
    batches   micro-batches that a choice looks at (at most 4)
    exclude   regular expressions over parameter names that never move
    dw, dy    operations for a weight's gradient, and for passing a gradient through an operator
Start:      the base model. Before the loop has shown its data, everything may move.
Cost:       forward and backward together at most `budget` of full fine-tuning on the batches that the choice was made on;
            each choice costs three full passes over `batches` (`choice_flops` of the run).
Paper:      Huang et al., 2023, "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
            arXiv:2309.13192, section 3.
Departures: costs come from the graph of a real step, not from a table of layer kinds, and branches (q, k, v) are
            parallel; the published recursion does not find the best set, this selection does (core/budget.py), in
            whole operations instead of 1/1000 of a step. Probing restores optimiser state and schedule as well as
            weights. A budget that cannot be kept is an error, never raised in silence. Tensors that stay chosen keep
            their moments, those that are dropped lose them. Where no tensor promises anything any more, what moved
            goes on. A task head always moves, inside the budget.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import nn

from luthier.core.anatomy import in_task_head
from luthier.core.budget import backward_budget, best_set, note
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.probe import Probe
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class Green(PartialTuner):
    paper: ClassVar[str] = "arXiv:2309.13192"
    cards: ClassVar[tuple[int, ...]] = (65,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    budget: float = 0.5
    interval: int = 2
    batches: int = 2
    exclude: tuple[str, ...] = ()

    @classmethod
    def example(cls) -> Self:
        return cls(budget=0.7)

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise LuthierError(f"tuner.budget is {self.budget}: a number above 0 and at most 1")
        if self.interval < 1 or self.batches < 1:
            raise LuthierError("tuner.interval and tuner.batches: at least 1")

    def due(self, epoch: int) -> bool:
        return epoch % self.interval == 0

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        names = [n for n, _ in model.named_parameters()]
        for pattern in self.exclude:
            if not any(re.search(pattern, n) for n in names):
                raise LuthierError(f"tuner.exclude: '{pattern}' matches no parameter (the first is '{names[0]}')")
        return Selection(whole={n for n in names if not any(re.search(p, n) for p in self.exclude)})

    @property
    def chooses(self) -> bool:
        return True

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        probe = probe.first(self.batches)
        candidates = self.select(model, random.Random(0)).whole
        names = [n for n, _ in model.named_parameters() if n in candidates or in_task_head(n)]
        cost = probe.cost({n: [n] for n in names})
        always = cost.bits(n for n in names if in_task_head(n))
        importance = list(probe.importance(names).values())
        room = backward_budget(self.budget, cost, "tuner.budget")
        chosen = best_set(cost, importance, room, always)
        if (
            not chosen.bits and probe.moves is not None
        ):  # converged: nothing to prefer over what moves, which fits the budget
            return replace(probe.moves, note={"kept": "no tensor promises a lower loss: what moved goes on"})
        if not chosen.bits:
            raise LuthierError("no tensor promises a lower loss from the start: lower learning_rate")
        return Selection(whole=set(cost.names(chosen.bits)), note=note(cost, chosen, importance, room))
