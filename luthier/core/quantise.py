"""Weights as a quantised base holds them: rounded to a few levels and read back, on any device, without kernels.

    nf4   W = s_b c[k]     s_b = max |W| over a block of 64 numbers, c: 16 levels, k: the nearest to W / s_b
    int8  W = s_i k / 127  s_i = max |W| over row i (one output), k: the nearest whole number to 127 W / s_i

Paper:      nf4: Dettmers et al., 2023, "QLoRA", arXiv:2305.14314, section 3 and appendix E; int8: Dettmers et al., 2022,
            "LLM.int8()", arXiv:2208.07339, section 2.
Departures: scales stay in float32 (no double quantisation); int8 keeps no outlier columns in 16 bits.

`hold` replaces a model's matrices by `QuantisedLinear`, which keep levels and scales and read the matrix back at each pass:
memory is that of the levels, and an adapter beside them learns as in QLoRA, on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64
KINDS = ("nf4", "int8")


def quantised(weight: Tensor, kind: str) -> Tensor:
    """A matrix (outputs, inputs) rounded as `kind` and read back, in its own dtype."""
    return read_back(*levels(weight, kind), weight.shape, kind).to(weight.dtype)


def levels(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Levels and float32 scales of a matrix: nf4 (blocks, 64) indices and (blocks, 1), int8 (outputs, inputs) and (outputs, 1)."""
    wide, tiny = weight.float(), torch.finfo(torch.float32).tiny
    if kind == "int8":
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=tiny)
        return (wide / scale * 127).round().to(torch.int8), scale
    if kind == "nf4":
        flat = wide.flatten()
        blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=tiny)
        known = torch.tensor(NF4, device=weight.device)
        return torch.bucketize((blocks / scale).contiguous(), (known[1:] + known[:-1]) / 2).to(torch.uint8), scale
    raise LuthierError(f"a base is quantised as one of {', '.join(KINDS)}, not '{kind}'")


def read_back(index: Tensor, scale: Tensor, shape: torch.Size, kind: str) -> Tensor:
    """The matrix (outputs, inputs), float32, of what `levels` gave."""
    if kind == "int8":
        return index.float() * scale / 127
    found = torch.tensor(NF4, device=index.device)[index.long()] * scale
    return found.flatten()[: shape.numel()].view(shape)


def bits(kind: str, inputs: int) -> float:
    """Stored bits a number of a matrix with `inputs` columns, scales (32 bits each) included."""
    return 4 + 32 / BLOCK if kind == "nf4" else 8 + 32 / inputs


class QuantisedLinear(nn.Linear):
    """A linear layer at rest: its matrix is kept as levels and scales, two levels of nf4 a byte.

    `weight` is the matrix read back, for whoever looks at it; writing into it would change nothing and is refused.
    """

    def __init__(self, layer: nn.Linear, kind: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        self.dtype = layer.weight.dtype
        index, scale = levels(layer.weight.detach(), kind)
        if kind == "nf4":
            index = index[:, ::2] * 16 + index[:, 1::2]  # (blocks, 32)
        self.register_buffer("levels", index)
        self.register_buffer("scales", scale)
        self.bias = layer.bias

    def read(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        index: Tensor = self.levels  # type: ignore[assignment]
        if self.kind == "nf4":
            index = torch.stack([index // 16, index % 16], -1).flatten(1)
        shape = torch.Size((self.out_features, self.in_features))
        return read_back(index, self.scales, shape, self.kind).to(self.dtype)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.read().as_subclass(_ReadBack)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias

    @property
    def bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers(recurse=False))


class _Product(torch.autograd.Function):
    """x @ W.T, which keeps no matrix for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.read())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad @ ctx.layer.read().to(grad.dtype)).to(ctx.dtype), None


class _ReadBack(Tensor):
    """What a quantised matrix is read back as: an ordinary tensor, but for being written to."""

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        in_place |= name == "__setitem__" or (name.startswith("__i") and name.endswith("__"))
        data: Any = Tensor.data
        if args and isinstance(args[0], _ReadBack) and (in_place or func == data.__set__):
            raise LuthierError(
                "a quantised matrix cannot be changed: merge the adapter into the base in full precision"
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return out.as_subclass(_ReadBack) if func == data.__get__ else out


def hold(model: nn.Module, kind: str) -> int:
    """Replace the matrices of the layers of `model` by quantised ones, embeddings and heads left as they are; how many.

    Raises LuthierError where the model has no linear layers to quantise.
    """
    matrices = dict.fromkeys(m.module for layer in anatomy(model).layers for m in layer.matrices)
    names = [n for n in matrices if type(model.get_submodule(n)) is nn.Linear]
    if not names:
        raise LuthierError(f"{type(model).__name__} has no linear layers that could be quantised: load it as it is")
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantisedLinear(model.get_submodule(name), kind))  # type: ignore[arg-type]
    return len(names)


def held(model: nn.Module) -> tuple[int, int]:
    """Numbers that `model` keeps as levels, and the bytes that they take."""
    layers = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    return sum(m.in_features * m.out_features for m in layers), sum(m.bytes for m in layers)
