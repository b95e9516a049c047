"""APET by units: an arbitrary mixture of inserted modules and of the model's own matrices, drawn by a seed up to N.

    y' = z + act(z W_down + b_down) W_up + b_up,    z = y + s x A^T B^T + x dW^T + db       each term where it was drawn

    budget  N;   share  of N for inserted units, the rest for the model's own tensors
    units   inserted: a pair A (R, inputs), B (outputs, R) at a matrix; a bottleneck (W_down, b_down, W_up, b_up) after an
            attention or feed-forward output.  Own: dW of a matrix (outputs, inputs); db of its bias (outputs,)
    r       R of pairs;  size  width of bottlenecks;  scale  s;  seed  of the draw
    Each list is walked once in a random order; a unit is taken whole if it fits in what is left of its part of N.
Start:      B, W_up, b_up, dW, db = 0: exactly the base model. A and W_down Kaiming-uniform.
Cost:       at most N scalars; what is left of each part is smaller than the smallest unit that was skipped.
Paper:      Su et al., 2023, "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
            Models", arXiv:2306.02320, section 3; halves and walk as in the released code.
Departures: own tensors move as added differences, so that all of it is one adapter folder; norms and embeddings are
            left out (apet draws those), and so is the soft prompt, which no block can hold. Units that are not taken
            are not inserted: they would be frozen identities.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import BridgedLayer, ModulePart, ModuleTuner, linear_size
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners._selection import fill

Unit = tuple[str, str]
"""(kind, module)."""
ROLES = ("q", "k", "v", "o", "up", "gate", "down")


class UnitsPart(ModulePart):
    """What was drawn for one matrix."""

    def __init__(self, kinds: set[str], inputs: int, outputs: int, method: ApetUnits):
        super().__init__()
        zeros = {
            "pair": ("B", (outputs, method.r)), "matrix": ("dW", (outputs, inputs)), "bias": ("db", (outputs,))
        }  # fmt: skip
        self.weights = nn.ParameterDict({n: torch.zeros(shape) for kind, (n, shape) in zeros.items() if kind in kinds})
        if "pair" in kinds:
            self.weights["A"] = torch.empty(method.r, inputs)
            nn.init.kaiming_uniform_(self.weights["A"], a=math.sqrt(5))
        self.scale = method.scale
        self.bottleneck: nn.Sequential | None = None
        if "bottleneck" in kinds:
            down, up = nn.Linear(outputs, method.size), nn.Linear(method.size, outputs)
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            for tensor in (down.bias, up.weight, up.bias):
                nn.init.zeros_(tensor)
            self.bottleneck = nn.Sequential(down, nn.GELU(), up)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        held = self.weights
        if "A" in held:
            y = y + self.scale * F.linear(F.linear(x, held["A"]), held["B"])
        if "dW" in held:
            y = y + F.linear(x, held["dW"])
        if "db" in held:
            y = y + held["db"]
        return y if self.bottleneck is None else y + self.bottleneck(y)


@dataclass(frozen=True)
class ApetUnits(ModuleTuner):
    paper: ClassVar[str] = "arXiv:2306.02320"
    cards: ClassVar[tuple[int, ...]] = (61,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    budget: int = 16384
    share: float = 0.5
    r: int = 8
    size: int = 16
    scale: float = 1.0
    seed: int = 0
    targets: tuple[str, ...] = ROLES

    @classmethod
    def example(cls) -> Self:
        return cls(budget=6000, r=2, size=4)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise LuthierError(f"tuner.share is {self.share}: a number from 0 to 1")

    def candidates(self, model: nn.Module) -> tuple[dict[Unit, int], dict[Unit, int]]:
        """Inserted and own units with their scalars, in the model's order."""
        body = anatomy(model)
        outputs_of_blocks = set(body.modules(("o", "down")))
        inserted: dict[Unit, int] = {}
        own: dict[Unit, int] = {}
        for name in body.modules(self.targets):
            inputs, outputs = linear_size(_plain(model.get_submodule(name)))
            inserted["pair", name] = self.r * (inputs + outputs)
            if name in outputs_of_blocks:
                inserted["bottleneck", name] = 2 * self.size * outputs + self.size + outputs
            own["matrix", name] = inputs * outputs
            own["bias", name] = outputs
        return inserted, own

    def drawn(self, model: nn.Module) -> dict[Unit, int]:
        """The units taken, with their scalars."""
        rng, units = random.Random(self.seed), self.candidates(model)
        parts = (int(self.share * self.budget), self.budget - int(self.share * self.budget))
        taken: dict[Unit, int] = {}
        for of, part in zip(units, parts, strict=True):
            taken |= {unit: of[unit] for unit in fill(list(of.items()), part, rng)[0]}
        if not taken:
            least = min(s for of in units for s in of.values())
            raise LuthierError(f"tuner.budget {self.budget:,} is too small: the smallest unit has {least:,} parameters")
        return taken

    def target_modules(self, model: nn.Module) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.drawn(model)))

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        kinds = {kind for kind, module in self.drawn(model) if module == name}
        return UnitsPart(kinds, *linear_size(target), self)

    def parameter_count(self, model: nn.Module) -> int:
        return sum(self.drawn(model).values())


def _plain(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BridgedLayer) else module
