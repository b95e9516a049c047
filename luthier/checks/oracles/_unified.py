"""Dense float64 references of the unified family: networks hooked onto a plain base, attention computed head by head.

Attention is written out as in card 19: with a prefix it is the gated sum of attention to the text and attention to the
prefix, never a concatenation; without softmax it is a plain sum. It runs as an attention implementation of the whole base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from luthier.checks.oracles._tuners import tensors_by_target
from luthier.core.anatomy import anatomy

Tensors = dict[str, Tensor]
Head = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(T, d) scaled query, (T, S) scores and (S, d) values of a head to (T, d)."""

ACTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda h: np.maximum(h, 0),
    "gelu": lambda h: h * 0.5 * (1 + erf(h / np.sqrt(2))),
}


# --------------------------------------------------------------------------------------------- networks


def network(tensors: Tensors, act: str) -> Callable[[Tensor], Tensor]:
    """f(z W_down + b_down) W_up + b_up in numpy."""
    a = {k: v.numpy() for k, v in tensors.items()}

    def run(z: Tensor) -> Tensor:
        h = ACTS[act](z.detach().double().numpy() @ a["down.weight"].T + a["down.bias"])
        return torch.from_numpy(h @ a["up.weight"].T + a["up.bias"])

    return run


def after(plain: nn.Module, name: str, run: Callable[[Tensor], Tensor], scale: float) -> None:
    """y + s run(y) behind module `name`."""
    module = plain.get_submodule(name)
    module.register_forward_hook(lambda m, args, y: (y.double() + scale * run(y)).to(y.dtype))


def beside_feed_forward(plain: nn.Module, block: str, run: Callable[[Tensor], Tensor], scale: float) -> None:
    """y + s run(x): x goes into the first matrix of the sublayer, y leaves the last one."""
    layer = next(one for one in anatomy(plain).layers if one.feed_forward == block)
    first, last = layer.matrix("up"), layer.matrix("down")
    assert first is not None
    assert last is not None
    read: list[Tensor] = []
    plain.get_submodule(first.module).register_forward_pre_hook(lambda m, args: read.append(args[0]))
    plain.get_submodule(last.module).register_forward_hook(
        lambda m, args, y: (y.double() + scale * run(read.pop())).to(y.dtype)
    )


# -------------------------------------------------------------------------------------------- attention


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gated_prefix(keys: np.ndarray, values: np.ndarray) -> Callable[[int, int], Head]:
    """(1 - g) attention to the text + g attention to the prefix; g from the two sums of exponentials."""

    def head(index: int, group: int) -> Head:
        P_k, P_v = keys[group], values[group]

        def run(query: np.ndarray, scores: np.ndarray, value: np.ndarray) -> np.ndarray:
            front = query @ P_k.T  # (T, l)
            top = np.maximum(front.max(-1), scores.max(-1))[:, None]
            of_prefix, of_text = np.exp(front - top).sum(-1), np.exp(scores - top).sum(-1)
            g = (of_prefix / (of_prefix + of_text))[:, None]
            return (1 - g) * softmax(scores) @ value + g * softmax(front) @ P_v

        return run

    return head


def plain_sum(keys: np.ndarray, values: np.ndarray, act: str, scale: float) -> Callable[[int, int], Head]:
    """Attention + s f(q P_k^T) P_v, with scores that are not divided by sqrt d."""

    def head(index: int, group: int) -> Head:
        def run(query: np.ndarray, scores: np.ndarray, value: np.ndarray) -> np.ndarray:
            return softmax(scores) @ value + scale * ACTS[act](query @ keys[index].T) @ values[index]

        return run

    return head


def with_attention(plain: nn.Module, heads: dict[str, Callable[[int, int], Head]], scaled_query: bool) -> nn.Module:
    """The base with attention of its modules `heads` computed by these functions, in numpy."""
    names = {id(plain.get_submodule(n)): n for n in heads}

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        scaling: float | None = None, position_bias: Tensor | None = None, **_: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        B, H, T, d = query.shape
        G, S = key.shape[1], key.shape[2]
        scaling = d**-0.5 if scaling is None else scaling
        added = np.zeros((B, H, T, S))
        for extra in (mask, position_bias):
            if extra is not None:
                added += extra.detach().double().expand(B, H, T, S).numpy()
        q, k, v = (t.detach().double().numpy() for t in (query, key, value))
        out = np.zeros((B, T, H, d))
        for i in range(H):
            g = i * G // H
            run = heads[names[id(module)]](i, g)
            for b in range(B):
                scores = q[b, i] @ k[b, g].T * scaling + added[b, i]
                out[b, :, i] = run(q[b, i] * scaling if scaled_query else q[b, i], scores, v[b, g])
        return torch.from_numpy(out).to(query.dtype), None

    AttentionInterface.register("luthier_oracle", attention)
    AttentionMaskInterface.register("luthier_oracle", eager_mask)
    plain.set_attn_implementation("luthier_oracle")  # type: ignore[operator]
    return plain


def prefixes(model: nn.Module, plain: nn.Module) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Keys and values (G, l, d) of every attention module of a trained model, computed from its networks by hand."""
    parts = {n: t for n, t in tensors_by_target(model).items() if "last.weight" in t}
    shared = {k.removeprefix("shared."): v.numpy() for t in parts.values() for k, v in t.items() if "shared." in k}
    stacks = {layer.matrix("q").module.rpartition(".")[0]: layer.stack for layer in anatomy(plain).layers}  # type: ignore[union-attr]
    config: Any = plain.config
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads  # type: ignore[union-attr]
    found = {}
    for name, tensors in parts.items():
        kind = stacks.get(name, "cross")
        h = np.tanh(shared[f"rows.{kind}"] @ shared[f"first.{kind}.weight"].T + shared[f"first.{kind}.bias"])
        both = h @ tensors["last.weight"].numpy().T + tensors["last.bias"].numpy()  # (l, 2 G d)
        halves = np.split(both, 2, 1)
        found[name] = tuple(half.reshape(len(half), -1, d).transpose(1, 0, 2) for half in halves)
    return found  # type: ignore[return-value]
