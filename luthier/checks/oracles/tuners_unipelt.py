"""All three parts and their gates by hand: dense matrices for LoRA, heads one by one for the prefix, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.checks._compare import close, differ
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds
from luthier.core.anatomy import anatomy

Tensors = dict[str, np.ndarray]


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        parts = {n: {k: v.numpy() for k, v in t.items()} for n, t in tensors_by_target(model).items()}
        attention = {n: t for n, t in parts.items() if "keys" in t}
        heads = {n: _head(plain, n, t) for n, t in attention.items()}
        for name, t in attention.items():
            for matrix in {k.split(".gate.")[0].removeprefix("pairs.") for k in t if ".gate." in k}:
                own = {k.removeprefix(f"pairs.{matrix}."): v for k, v in t.items()}
                _pair(plain.get_submodule(f"{name}.{matrix}"), own, tuner.alpha / tuner.r)
        for layer in anatomy(plain).layers:
            last = layer.matrix("down")
            assert last is not None
            _adapter(plain.get_submodule(last.module), parts[layer.feed_forward])
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        said = world.said(dense.with_attention(plain, heads, scaled_query=True))
        close(said, world.said(model), f"{world.label}: numpy and trained model")


def _gate(x: np.ndarray, t: Tensors) -> np.ndarray:
    return 1 / (1 + np.exp(-(x @ t["gate.weight"].T + t["gate.bias"])))  # (..., 1)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def _pair(matrix: nn.Module, t: Tensors, scale: float) -> None:
    product = scale * t["up.weight"] @ t["down.weight"]  # (outputs, inputs)

    def after(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        x = _array(args[0])
        return torch.from_numpy(_array(y) + _gate(x, t) * (x @ product.T)).to(y.dtype)

    matrix.register_forward_hook(after)


def _adapter(last: nn.Module, t: Tensors) -> None:
    def after(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        y = _array(out)
        h = np.maximum(y @ t["down.weight"].T + t["down.bias"], 0) @ t["up.weight"].T + t["up.bias"]
        return torch.from_numpy(y + _gate(y, t) * h).to(out.dtype)

    last.register_forward_hook(after)


def _head(plain: nn.Module, name: str, t: Tensors) -> Any:
    """The gate weighs the gated sum of the two attentions against attention to the text: (1 - G g) text + G g prefix."""
    gates: list[np.ndarray] = []
    turn = [0]

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        gates[:], turn[0] = list(_gate(_array(args[0] if args else kwargs["hidden_states"]), t)), 0

    plain.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)
    made = dense.gated_prefix(t["keys"], t["values"])

    def head(index: int, group: int) -> dense.Head:
        with_prefix = made(index, group)
        turn[0] = 0  # rows of the batch come in order for each head

        def run(query: np.ndarray, scores: np.ndarray, value: np.ndarray) -> np.ndarray:
            G = gates[turn[0]]
            turn[0] += 1
            text = dense.softmax(scores) @ value
            return text + G * (with_prefix(query, scores, value) - text)

        return run

    return head
