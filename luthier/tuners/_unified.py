"""One space of adapters: a hidden state h is changed by a network of its own, h <- compose(h, Delta h).

    Delta h = f(z W_down + b_down) W_up + b_up         z (..., P) read, h (..., Q) changed, W_down (P, R), W_up (R, Q)

    form         f: a non-linearity or "identity" (low rank); a softmax over keys is `PrefixPart`, f between keys and
                 values of a head without softmax `HeadwisePart`
    position     which h: the output of attention or feed-forward (roles of blocks), a matrix, the output of every head
    insertion    z = h, "sequential", or z = what the sublayer reads, "parallel"
    composition  "add": h + Delta h;  "scaled": h + s Delta h;  "learned": s trained, from `scale`;
                 "gated": (1 - g) h + g Delta h with g trained, from 0
    size         R, or the number of prefix rows

After He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv:2110.04366, table 1. Methods
are named points: their files say which, by the fields' defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.adapt import ModulePart, ModuleTuner, activation, linear_size, norm_modules
from luthier.core.anatomy import anatomy, base_transformer, head_sizes
from luthier.core.attention import Attend, AttentionPart, AttentionTuner
from luthier.core.method import LuthierError, Refusal

Insertion = Literal["sequential", "parallel"]
Composition = Literal["add", "scaled", "learned", "gated"]


# -------------------------------------------------------------------------------------------------- adapters


class AdapterPart(ModulePart):
    """Reads P features, changes Q. Starts as nothing: W_up = 0, or with a gate g = 0."""

    def __init__(
        self,
        read: int,
        changed: int,
        size: int,
        act: str = "relu",
        insertion: Insertion = "sequential",
        composition: Composition = "add",
        scale: float = 1.0,
        norm: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(read) if norm else nn.Identity()
        self.down = nn.Linear(read, size, bias)
        self.up = nn.Linear(size, changed, bias)
        self.act, self.insertion, self.composition = activation(act), insertion, composition
        self.scale: float | nn.Parameter = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        if composition == "gated":  # with W_up = 0 as well nothing would ever have a gradient
            self.scale = nn.Parameter(torch.zeros(1))
            nn.init.kaiming_uniform_(self.up.weight, a=math.sqrt(5))
        else:
            nn.init.zeros_(self.up.weight)
        if composition == "learned":
            self.scale = nn.Parameter(torch.full((1,), scale))
        if composition == "add":
            self.scale = 1.0
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        z = y if self.insertion == "sequential" else x
        delta = self.scale * self.up(self.act(self.down(self.norm(z))))  # (B, T, Q); the bottleneck is (B, T, R)
        return (1 - self.scale) * y + delta if self.composition == "gated" else y + delta


@dataclass(frozen=True)
class UnifiedTuner(ModuleTuner):
    """The adapters of the space. `targets` are roles: of blocks ("attention", "feed_forward"), or of matrices."""

    size: int = 16
    act: str = "relu"
    targets: tuple[str, ...] = ("feed_forward",)
    insertion: Insertion = "parallel"
    composition: Composition = "scaled"
    scale: float = 1.0
    norm: bool = False
    biases: bool = True
    train_norms: bool = False

    @classmethod
    def example(cls) -> Self:
        return cls(size=4)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise LuthierError(f"tuner.size is {self.size}: a bottleneck of at least 1")

    def target_modules(self, model: nn.Module) -> list[str]:
        names = super().target_modules(model)
        if self.insertion == "parallel":
            lone = [n for n in self._blocks(model) if n in names and _is_matrix(model.get_submodule(n))]
            if lone:
                raise Refusal(
                    f"{self.name}: '{lone[0]}' is the last matrix of a sublayer that is no module of its own in this "
                    "architecture, so nothing can be put beside it: tuner.insertion = sequential, or other targets"
                )
        return names

    def _blocks(self, model: nn.Module) -> list[str]:
        return anatomy(model).modules(("attention", "cross_attention", "feed_forward"))

    def trained_copies(self, model: nn.Module) -> list[str]:
        return norm_modules(model) if self.train_norms else []

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """A trained s or g is not pulled to zero: the composition would be undone with it."""
        trained = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".scale")]
        return [{"params": trained, "weight_decay": 0.0}] if trained else None

    def sizes(self, target: nn.Module, model: nn.Module) -> tuple[int, int]:
        """(features read, features changed) at a target."""
        if not _is_matrix(target):
            width = base_transformer(model).config.hidden_size
            return width, width
        inputs, outputs = linear_size(target)
        return (inputs if self.insertion == "parallel" else outputs), outputs

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        return AdapterPart(
            *self.sizes(target, model), self.size, self.act, self.insertion, self.composition, self.scale, self.norm,
            self.biases,
        )  # fmt: skip

    def parameter_count(self, model: nn.Module) -> int:
        sites = [self.sizes(model.get_submodule(n), model) for n in self.target_modules(model)]
        gates = int(self.composition in ("learned", "gated"))
        return self.copied_scalars(model) + sum(
            self.size * (P + Q) + (self.size + Q) * self.biases + 2 * P * self.norm + gates for P, Q in sites
        )


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module, nn.Linear | Conv1D)


# -------------------------------------------------------------------------------------------------- prefixes


class PrefixPart(AttentionPart):
    """l keys and values in front of every sequence, for each of the G key heads: softmax between them, gated addition."""

    def __init__(self, length: int, heads: int, size: int):
        super().__init__()
        self.keys = nn.Parameter(0.02 * torch.randn(heads, length, size))
        self.values = nn.Parameter(0.02 * torch.randn(heads, length, size))

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (G, l, d) each."""
        return self.keys, self.values

    def forward(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        front = [p.to(key.dtype).expand(len(key), -1, -1, -1) for p in self.prefix()]  # (B, G, l, d)
        return attend(query, torch.cat([front[0], key], 2), torch.cat([front[1], value], 2))


class PrefixNetworks(nn.Module):
    """What the layers of each kind of attention share: l rows and the first matrix of the network that they pass."""

    def __init__(self, kinds: list[str], length: int, width: int, hidden: int):
        super().__init__()
        self.rows = nn.ParameterDict({k: torch.randn(length, width) for k in kinds})
        self.first = nn.ModuleDict({k: nn.Linear(width, hidden) for k in kinds})

    def hidden(self, kind: str) -> Tensor:
        return torch.tanh(self.first[kind](self.rows[kind]))  # (l, hidden)


class ReparameterisedPrefix(PrefixPart):
    """The same keys and values, computed: [K; V] = tanh(E W_1 + b_1) W_2 + b_2, where W_2 is the layer's own."""

    def __init__(self, kind: str, hidden: int, heads: int, size: int):
        AttentionPart.__init__(self)
        self.shared: PrefixNetworks | None
        self.register_module("shared", None)  # set by the bridge
        self.last = nn.Linear(hidden, 2 * heads * size)
        self.kind, self.heads, self.size = kind, heads, size

    def prefix(self) -> tuple[Tensor, Tensor]:
        assert self.shared is not None
        both = self.last(self.shared.hidden(self.kind))  # (l, 2 G d)
        keys, values = both.view(len(both), 2, self.heads, self.size).permute(1, 2, 0, 3)
        return keys, values

    def folded(self) -> PrefixPart:
        keys, values = (p.detach().clone() for p in self.prefix())
        part = PrefixPart(keys.shape[1], self.heads, self.size)
        part.keys, part.values = nn.Parameter(keys), nn.Parameter(values)
        return part


@dataclass(frozen=True)
class PrefixTuner(AttentionTuner):
    """`mlp` is the width of the network that makes keys and values in training; 0: they are trained directly."""

    length: int = 30
    mlp: int = 800
    folded: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise LuthierError(f"tuner.length is {self.length}: a prefix of at least 1 row")

    def build_shared(self, model: nn.Module) -> nn.Module | None:
        if not self.mlp or self.folded:
            return None
        return PrefixNetworks(prefix_kinds(model), self.length, base_transformer(model).config.hidden_size, self.mlp)

    def build(self, shape: tuple[int, int, int], kind: str) -> PrefixPart:
        _, heads, size = shape
        if not self.mlp or self.folded:
            return PrefixPart(self.length, heads, size)
        return ReparameterisedPrefix(kind, self.mlp, heads, size)

    def parameter_count(self, model: nn.Module) -> int:
        _, heads, size = head_sizes(model)
        sites, D = len(self.target_modules(model)), base_transformer(model).config.hidden_size
        if not self.mlp or self.folded:
            return sites * 2 * self.length * heads * size
        shared = self.length * D + D * self.mlp + self.mlp
        return len(prefix_kinds(model)) * shared + sites * (self.mlp + 1) * 2 * heads * size


def prefix_kinds(model: nn.Module) -> list[str]:
    """Kinds of attention that the model has, in a fixed order."""
    body = anatomy(model)
    kinds = [s for s in ("encoder", "decoder") if body.modules(("heads",), s)]
    return [*kinds, "cross"] if body.modules(("cross_attention",)) else kinds


class HeadwisePart(AttentionPart):
    """out_i + s f(q_i P_k^T) P_v, for every query head: a prefix without softmax, added plainly."""

    def __init__(self, size: int, heads: int, features: int, act: str, scale: float):
        super().__init__()
        self.keys = nn.Parameter(torch.empty(heads, size, features))
        self.values = nn.Parameter(torch.zeros(heads, size, features))
        self.act, self.scale = activation(act), scale
        for keys in self.keys:
            nn.init.kaiming_uniform_(keys.data, a=math.sqrt(5))

    def forward(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = self.act(query.to(self.keys.dtype) @ self.keys.transpose(1, 2))  # (B, H, T, R)
        beside = self.scale * scores @ self.values  # (B, H, T, d)
        return attend(query, key, value) + beside.transpose(1, 2).to(query.dtype)
