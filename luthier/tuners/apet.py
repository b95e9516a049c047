"""APET: an arbitrary set of N parameters of the model moves, drawn by a seed; everything else stands still.

    theta_i <- theta_i - eta * grad_i   for i in S,   |S| = N;    theta_i stays for i not in S

    budget    N, scalars that move
    level     "scalars": exactly N entries, uniformly over all entries.  "tensors": whole tensors in a random order, each
              taken if it fits in what is left of N.  "auto": tensors where N reaches the smallest tensor, else scalars
    seed      of the draw; the run's seed does not change it
    eligible  regular expressions over parameter names that may be drawn (empty: all)
    stratify  scalars: the same number from every layer (and from what is outside the layers)
Start:      the base model.
Cost:       N scalars; for "scalars" the optimiser still keeps state for each tensor that has an entry in S.
Paper:      Su et al., 2023, "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
            Models", arXiv:2306.02320, section 3; the walk over tensors is that of the released code.
Departures: entries are an addition: the paper draws tensors and modules only (modules: apet_units). A tied tensor is
            one tensor. A new task head always moves and is not part of N. Entries that never get a gradient (tokens
            that do not occur) are drawn as well: `moved_parameters` of the run says how many moved.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import nn

from luthier.core.anatomy import anatomy, in_task_head
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection
from luthier.tuners._selection import fill, scatter, shares


@dataclass(frozen=True)
class APET(PartialTuner):
    paper: ClassVar[str] = "arXiv:2306.02320"
    cards: ClassVar[tuple[int, ...]] = (61,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    budget: int = 4096
    level: Literal["auto", "scalars", "tensors"] = "auto"
    seed: int = 0
    eligible: tuple[str, ...] = ()
    stratify: bool = False

    @classmethod
    def example(cls) -> Self:
        return cls(budget=3000, level="scalars")

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise LuthierError(f"tuner.budget is {self.budget}: at least one parameter")

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        sizes = self._sizes(model)
        total = sum(sizes.values())
        if self.budget > total:
            raise LuthierError(f"tuner.budget is {self.budget:,}, but only {total:,} parameters are eligible: lower it")
        own, heads = random.Random(self.seed), {n for n, _ in model.named_parameters() if in_task_head(n)}
        if self.level == "scalars" or (self.level == "auto" and self.budget < min(sizes.values())):
            groups = self._strata(model, sizes) if self.stratify else [sizes]
            parts = shares([sum(g.values()) for g in groups], self.budget)
            entries = {n: at for g, part in zip(groups, parts, strict=True) for n, at in scatter(g, part, own).items()}
            return Selection(heads, entries=entries, note={"level": "scalars", "taken": self.budget, "left": 0})
        taken, left = fill(list(sizes.items()), self.budget, own)
        if not taken:
            least = min(sizes, key=lambda n: sizes[n])
            raise LuthierError(
                f"tuner.budget is {self.budget:,}, but the smallest tensor '{least}' has {sizes[least]:,} parameters: "
                "raise it, or set tuner.level to scalars"
            )
        return Selection(heads | set(taken), note={"level": "tensors", "taken": sorted(taken), "left": left})

    def _sizes(self, model: nn.Module) -> dict[str, int]:
        """Scalars of every eligible tensor, each tensor once, task heads left out."""
        named = {n: p.numel() for n, p in model.named_parameters() if not in_task_head(n)}
        for pattern in self.eligible:
            if not any(re.search(pattern, n) for n in named):
                raise LuthierError(
                    f"tuner.eligible: '{pattern}' matches no parameter (the first is '{next(iter(named))}')"
                )
        return {n: s for n, s in named.items() if not self.eligible or any(re.search(p, n) for p in self.eligible)}

    def _strata(self, model: nn.Module, sizes: dict[str, int]) -> list[dict[str, int]]:
        """Tensors by layer, and those outside the layers."""
        layers = [layer.name + "." for layer in anatomy(model).layers]
        groups = [{n: s for n, s in sizes.items() if n.startswith(layer)} for layer in layers]
        groups.append({n: s for n, s in sizes.items() if not n.startswith(tuple(layers))})
        return [g for g in groups if g]
