"""IAA: bottlenecks inside the frozen sub-layers and others aside of them, so that all that is trained is one connected path.

    sub-layer F (attention, feed-forward) with input x, its last matrix W_o with input z, F(x) = z W_o
        out = x + I(F) + S(x)                                                          "aside"
        I   = F + z A B             "lora"                  z (B, T, Z), A (Z, r), B (r, D)
            = F + act(F A + a) B + b    "sequential"        A (D, r)
            = F + act(z A + a) B + b    "parallel"          A (Z, r)
            = F                     "none"
        S(x) = act(x P + p) Q + q                           P (D, s), Q (s, D)
    or outside of the blocks and without I, h_l the output of block l
        a_0 = 0,  a_l = a_(l-1) + S_l(LN(h_l) + a_(l-1)),  final state h_L + a_L         "ladder"

    inside, inside_size   form of I and its r;  aside_size  s
    wiring                "aside" or "ladder";  act  in S and I
    detach                ladder only: h_l is a constant for it; nothing is computed backward below the last block
Start:      B = Q = 0, biases 0: exactly the base model. A and P Kaiming-uniform (a = sqrt 5).
Cost:       r (Z + D) (lora) + 2 s D + s + D scalars a sub-layer; a ladder has one S a block. Stays in the forward pass.
Paper:      Ma et al., 2022, "Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information
            Retrieval", arXiv:2208.09847, section 4.
Departures: the paper's exact wiring is reconstructed. S reads what F reads: x in post-norm encoders, LN(x) where the
            norm comes first, so that it meets one scale in all layers. LN of the ladder has no parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, linear_size
from luthier.core.anatomy import anatomy, base_transformer
from luthier.core.method import LuthierError
from luthier.tuners._ladder import Bottleneck, Path, Rung, ends

SUB_LAYERS = {"o": "q", "down": "up"}
"""The last matrix of a sub-layer, and one that reads the sub-layer's input."""


class LowRank(nn.Module):
    """x A B."""

    def __init__(self, inputs: int, size: int, outputs: int):
        super().__init__()
        self.down, self.up = nn.Linear(inputs, size, bias=False), nn.Linear(size, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Tap(ModulePart):
    """On a matrix that reads a sub-layer's input: hands it over."""

    shared: Path

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        self.shared.put(x)
        return y


class SubLayer(ModulePart):
    """On the last matrix of a sub-layer: I, and S of what was handed over."""

    shared: Path

    def __init__(self, inside: nn.Module | None, reads_output: bool, aside: nn.Module):
        super().__init__()
        self.inside, self.aside, self.reads_output = inside, aside, reads_output

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        out = y
        if self.inside is not None:
            out = out + self.inside(y if self.reads_output else x)
        return out + self.aside(self.shared.take().to(y.dtype))


class Step(Rung):
    """a_l = a_(l-1) + S_l(LN(h_l) + a_(l-1))."""

    def __init__(self, aside: nn.Module, first: bool, last: bool, detach: bool):
        super().__init__(first, last, detach)
        self.aside = aside

    def climb(self, h: Tensor, x: Tensor, before: Tensor | None) -> Tensor:
        h = F.layer_norm(h, h.shape[-1:])
        return self.aside(h) if before is None else before + self.aside(h + before)


@dataclass(frozen=True)
class Iaa(ModuleTuner):
    paper: ClassVar[str] = "arXiv:2208.09847"
    cards: ClassVar[tuple[int, ...]] = (40, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    inside: Literal["lora", "sequential", "parallel", "none"] = "lora"
    inside_size: int = 8
    aside_size: int = 8
    wiring: Literal["aside", "ladder"] = "aside"
    act: str = "gelu"
    detach: bool = False
    targets: tuple[str, ...] = ("o", "down")

    def __post_init__(self) -> None:
        unknown = [t for t in self.targets if t not in SUB_LAYERS]
        if unknown:
            raise LuthierError(f"tuner.targets: '{unknown[0]}' is not the last matrix of a sub-layer: o, down or both")
        if self.detach and self.wiring != "ladder":
            raise LuthierError("tuner.detach is for wiring: ladder; aside modules are inside the blocks")
        if self.wiring == "ladder" and self.inside != "none":
            raise LuthierError(
                f"tuner.inside is {self.inside}, but a ladder is outside of the blocks: say inside: none"
            )

    @classmethod
    def example(cls) -> Self:
        return cls(inside_size=4, aside_size=4)

    def target_modules(self, model: nn.Module) -> list[str]:
        if self.wiring == "ladder":
            return [layer.name for layer in anatomy(model).layers]
        return self._matrices(model) + anatomy(model).modules([SUB_LAYERS[t] for t in self.targets])

    def _matrices(self, model: nn.Module) -> list[str]:
        return super().target_modules(model)

    def build_shared(self, model: nn.Module) -> Path:
        return Path()

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        body = anatomy(model)
        if self.wiring == "ladder":
            aside = Bottleneck(body.width, self.aside_size, body.width, self.act)
            return Step(aside, *ends(body, name), self.detach)
        if name not in self._matrices(model):
            return Tap()
        inputs, outputs = linear_size(target)
        aside = Bottleneck(outputs, self.aside_size, outputs, self.act)
        return SubLayer(self._inside(inputs, outputs), self.inside == "sequential", aside)

    def _inside(self, inputs: int, outputs: int) -> nn.Module | None:
        if self.inside == "none":
            return None
        if self.inside == "lora":
            return LowRank(inputs, self.inside_size, outputs)
        return Bottleneck(outputs if self.inside == "sequential" else inputs, self.inside_size, outputs, self.act)

    def parameter_count(self, model: nn.Module) -> int:
        D, r, s = base_transformer(model).config.hidden_size, self.inside_size, self.aside_size
        aside = 2 * s * D + s + D
        if self.wiring == "ladder":
            return aside * len(anatomy(model).layers)
        inside = {
            "lora": lambda z: r * (z + D), "sequential": lambda z: 2 * r * D + r + D,
            "parallel": lambda z: r * (z + D) + r + D, "none": lambda z: 0,
        }[self.inside]  # fmt: skip
        return sum(inside(linear_size(model.get_submodule(n))[0]) + aside for n in self._matrices(model))
