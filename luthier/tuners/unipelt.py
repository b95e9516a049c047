"""UniPELT: LoRA, a prefix and an adapter in every layer, each under a gate that reads its own input.

    q = x W_q + G_q(x) (alpha / r) x A_q B_q                   and v alike; A (inputs, r), B (r, outputs)
    a = attention(q, K, V) + G_p(x) (attention(q, [P_K; K], [P_V; V]) - attention(q, K, V))   P (G, l, d), every head
    y' = y + G_a(y) (relu(y W_down + b) W_up + c)              y (B, T, D) = feed_forward, W_down (D, R), W_up (R, D)
    G(x) = sigmoid(x w + b), (B, T, 1)                         w (D,), one gate for each matrix, prefix and adapter

    r, alpha  of LoRA;  length  l of the prefix;  size  R of the adapter
    targets   roles of matrices with LoRA in the attention of a layer to itself
Start:      not the base model, because of the prefix. LoRA and adapter start as nothing (B = 0, W_up = 0), w = b = 0: every
            gate is half open.
Cost:       r (inputs + outputs) + inputs + 1 scalars a matrix, 2 l G d + D + 1 an attention module, 2 R D + R + 2 D + 1 a
            feed-forward block. Attention runs twice. Gates depend on the input, so nothing merges.
Paper:      Mao et al., 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
            arXiv:2110.07577, section 3.
Departures: a gate opens token by token; the paper's code takes its mean over the sequence, which would let later tokens and
            padding change earlier ones. G_p weighs what the prefix adds, where the paper scales P_K and P_V: keys of zero
            still take weight from the text, and a closed gate should be the base. The prefix is trained directly. It is in
            front of cross-attention too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import BridgedTuner, ModuleLayer, linear_size
from luthier.core.anatomy import anatomy, head_sizes
from luthier.core.attention import Attend, AttentionLayer, AttentionModel, attention_modules
from luthier.core.method import LuthierError
from luthier.tuners._unified import AdapterPart, PrefixPart


class Gate(nn.Linear):
    """sigmoid(x w + b), (..., 1)."""

    def __init__(self, width: int):
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x.to(self.weight.dtype)))


class GatedPair(nn.Module):
    """G(x) (alpha / r) x A B."""

    def __init__(self, inputs: int, outputs: int, r: int, alpha: float):
        super().__init__()
        self.down, self.up = nn.Linear(inputs, r, bias=False), nn.Linear(r, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.gate, self.scale = Gate(inputs), alpha / r

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.down.weight.dtype)
        return self.gate(x) * self.scale * self.up(self.down(x))


class GatedAttention(PrefixPart):
    """A prefix under a gate, and the pairs of the matrices that it finds in its module by name."""

    def __init__(self, length: int, heads: int, size: int, width: int, pairs: dict[str, GatedPair]):
        super().__init__(length, heads, size)
        self.gate, self.pairs = Gate(width), nn.ModuleDict(pairs)
        self.open: Tensor | None = None

    def forward(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self.open is not None, "a part ran outside of its module"
        without = attend(query, key, value)  # (B, T, H, d)
        return without + self.open[..., None].to(without.dtype) * (super().forward(attend, query, key, value) - without)


class GatedLayer(AttentionLayer):
    """What the module reads goes to the gates; pairs are on its matrices for this one call."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        handles, parts = [], self.active_parts()
        for part in parts:
            part.open = part.gate(args[0] if args else kwargs["hidden_states"])  # (B, T, 1)
            for name, pair in part.pairs.items():
                matrix = self.base_layer.get_submodule(name)
                handles.append(matrix.register_forward_hook(lambda _, x, y, add=pair: y + add(x[0]).to(y.dtype)))
        try:
            return super().forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            for part in parts:
                part.open = None


class GatedAdapter(AdapterPart):
    def __init__(self, width: int, size: int):
        super().__init__(width, width, size)
        self.gate = Gate(width)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.gate(y) * self.up(self.act(self.down(y)))


@dataclass(frozen=True)
class UniPELT(BridgedTuner):
    paper: ClassVar[str] = "arXiv:2110.07577"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3
    model_class: ClassVar[type | None] = AttentionModel

    r: int = 8
    alpha: float = 16.0
    length: int = 10
    size: int = 48
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self) -> None:
        for name in ("r", "length", "size"):
            if getattr(self, name) < 1:
                raise LuthierError(f"tuner.{name} is {getattr(self, name)}: at least 1")
        wrong = [t for t in self.targets if t not in ("q", "k", "v")]
        if wrong:
            raise LuthierError(f"tuner.targets: '{wrong[0]}' is not a matrix in front of attention: q, k or v")

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0, length=3, size=4)

    @classmethod
    def layer_classes(cls) -> tuple[type, ...]:
        return GatedLayer, ModuleLayer

    def layer_class_for(self, model: nn.Module, name: str) -> type:
        return GatedLayer if name in attention_modules(self, model) else ModuleLayer

    def target_modules(self, model: nn.Module) -> list[str]:
        return attention_modules(self, model) + self._feed_forward(model)

    def _feed_forward(self, model: nn.Module) -> list[str]:
        return anatomy(model).modules(("feed_forward",))

    def matrices(self, model: nn.Module, name: str) -> dict[str, tuple[int, int]]:
        """Matrices of attention module `name` with a pair, by their names in it, and their sizes."""
        found = [n for n in anatomy(model).modules(self.targets) if n.startswith(f"{name}.")]
        return {n.removeprefix(f"{name}."): linear_size(model.get_submodule(n)) for n in found}

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> GatedAttention | GatedAdapter:
        D = anatomy(model).width
        if name in self._feed_forward(model):
            return GatedAdapter(D, self.size)
        _, heads, size = head_sizes(model)
        pairs = {n: GatedPair(*shape, self.r, self.alpha) for n, shape in self.matrices(model, name).items()}
        return GatedAttention(self.length, heads, size, D, pairs)

    def parameter_count(self, model: nn.Module) -> int:
        _, heads, size = head_sizes(model)
        D, attention = anatomy(model).width, attention_modules(self, model)
        shapes = [s for n in attention for s in self.matrices(model, n).values()]
        return (
            len(attention) * (2 * self.length * heads * size + D + 1)
            + sum(self.r * (i + o) + i + 1 for i, o in shapes)
            + len(self._feed_forward(model)) * (2 * self.size * D + self.size + 2 * D + 1)
        )
