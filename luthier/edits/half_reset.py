"""Half-reset: put a random half of a tuned model's matrices back to their values before tuning. No training.

    theta' = M * theta_tuned + (1 - M) * theta_0           M: mask over whole matrices, drawn as half fine-tuning draws

    share    share of the body that goes back (0: the tuned model, 1: the base body with the tuned embeddings and head)
    level    "category", "layer" or "model", as in half fine-tuning
    outside  what happens to embeddings, head and final norm: "tuned" stay, or "base" at share 1 only
    seed     of the draw
Start:      share 0 is the tuned model exactly.
Cost:       one pass over the weights.
Paper:      Hui et al., 2024, "HFT: Half Fine-Tuning for Large Language Models", arXiv:2404.18466, section 2.
Departures: `outside: base` resets everything at share 1, so that share 1 is the base model exactly (as the card asks).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from luthier.core.anatomy import Block, anatomy
from luthier.core.halves import draw
from luthier.core.method import Edit, LuthierError


@dataclass(frozen=True)
class HalfReset(Edit):
    paper: ClassVar[str] = "arXiv:2404.18466"
    cards: ClassVar[tuple[int, ...]] = (5,)
    inputs: ClassVar[tuple[int, int | None]] = (2, 2)
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree", "copies"})

    share: float = 0.5
    level: Literal["category", "layer", "model"] = "category"
    outside: Literal["tuned", "base"] = "base"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise LuthierError(f"edit.share is {self.share}: a number from 0 to 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"architecture"})

    def plan(
        self, states: Sequence[Mapping[str, Tensor]], model: nn.Module | None = None, probe: Any = None
    ) -> dict[str, list[Block]] | None:
        """Blocks that go back by tensor (none: all of it); None: everything goes back."""
        if model is None:
            raise LuthierError("half_reset needs the architecture")
        if self.share == 1 and self.outside == "base":
            return None
        back: dict[str, list[Block]] = {}
        for matrix in draw(anatomy(model), self.share, self.level, random.Random(self.seed)):
            for name, parameter in model.get_submodule(matrix.module).named_parameters(recurse=False):
                rows = matrix.blocks or ((0, 0, parameter.shape[0]),)
                back.setdefault(f"{matrix.module}.{name}", []).extend(
                    (d if parameter.ndim > 1 else 0, a, b) for d, a, b in rows
                )
        return back

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: dict[str, list[Block]] | None) -> Tensor:
        tuned, base = tensors
        if plan is None:
            return base
        out = tuned.clone()
        for dim, start, stop in plan.get(name, ()):
            out.narrow(dim, start, stop - start).copy_(base.narrow(dim, start, stop - start))
        return out
