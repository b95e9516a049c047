"""What partial tuners share: how far each tensor is from the head, what lies below the first layer, biases.

    gap(head, pooler, final norm) = 0      gap(block l of L, from 0) = L - l      gap(embeddings) = L + 1

Encoder and decoder of one model are counted each from its own top. Tied tensors count once, under their first name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from luthier.core.anatomy import Anatomy, anatomy, in_task_head


def below_layers(model: nn.Module, body: Anatomy) -> list[str]:
    """Modules below the first layer: every table outside the layers, and in encoders the norm that follows them."""
    inside = tuple(f"{layer.name}." for layer in body.layers)
    tables = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding) and not n.startswith(inside)]
    return [*tables, body.embedding.rsplit(".", 1)[0]] if body.kind == "encoder" else tables


def gaps(model: nn.Module) -> dict[str, int]:
    """Distance of every parameter from the head, each tensor once."""
    body = anatomy(model)
    depth = {layer.stack: 1 + max(k.index for k in body.layers if k.stack == layer.stack) for layer in body.layers}
    places = [(f"{layer.name}.", depth[layer.stack] - layer.index) for layer in body.layers]
    places += [(f"{name}.", max(depth.values()) + 1) for name in below_layers(model, body)]
    return {n: next((gap for at, gap in places if n.startswith(at)), 0) for n, _ in model.named_parameters()}


def decayed(model: nn.Module, decay: float, new: int = 0) -> list[dict[str, Any]]:
    """Parameter groups of rate decay ** gap, the full rate last. Gaps up to `new` are as new as the head."""
    by_gap: dict[int, list[str]] = {}
    for name, gap in gaps(model).items():
        by_gap.setdefault(0 if gap <= new else gap, []).append(name)
    return [{"params": by_gap[gap], "lr_scale": decay**gap} for gap in sorted(by_gap, reverse=True)]


def biases(model: nn.Module) -> list[str]:
    """Names of all bias vectors, norms' included; those of a task head are not the model's own."""
    return [
        n for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] == "bias" and p.ndim == 1 and not in_task_head(n)
    ]
