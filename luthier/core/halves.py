"""Drawing a share of a transformer's matrices: what half fine-tuning freezes and half-reset puts back.

Three levels: "category" takes the share of each kind of matrix (attention, feed-forward, norms) in every layer, "layer"
takes whole layers, "model" takes any matrices of the body. Embeddings, head and final norm are never drawn.
"""

from __future__ import annotations

import random
from collections import defaultdict

from torch import nn

from luthier.core.anatomy import Anatomy, Matrix
from luthier.core.trainable import Selection

FEED_FORWARD = ("up", "gate", "down")
LEVELS = ("category", "layer", "model")


def draw(body: Anatomy, share: float, level: str, rng: random.Random) -> list[Matrix]:
    """Matrices (and norms) that make up `share` of the body."""
    layers = body.layers
    if level == "layer":
        return _units([[*layer.matrices, *(Matrix("norm", n) for n in layer.norms)] for layer in layers], share, rng)
    if level == "model":
        return _units([[m] for layer in layers for m in layer.matrices], share, rng)
    out: list[Matrix] = []
    for stack in dict.fromkeys(layer.stack for layer in layers):
        mine = [layer for layer in layers if layer.stack == stack]
        for kinds in (
            [[m for m in layer.matrices if m.role in "qkvo"] for layer in mine],
            [[m for m in layer.matrices if m.role.startswith("cross_")] for layer in mine],
            [[m for m in layer.matrices if m.role in FEED_FORWARD] for layer in mine],
            [[Matrix("norm", n) for n in layer.norms] for layer in mine],
        ):
            out += _per_layer(kinds, share, rng)
    return out


def _units(units: list[list[Matrix]], share: float, rng: random.Random) -> list[Matrix]:
    """Whole units, the number rounded down."""
    return [m for unit in rng.sample(units, int(share * len(units) + 1e-9)) for m in unit]


def _per_layer(group: list[list[Matrix]], share: float, rng: random.Random) -> list[Matrix]:
    """The same number from every layer, the remainder from random layers."""
    total = int(share * sum(len(layer) for layer in group) + 1e-9)
    base, extra = divmod(total, len(group))
    more = set(rng.sample(range(len(group)), extra))
    return [m for i, layer in enumerate(group) for m in rng.sample(layer, min(len(layer), base + (i in more)))]


def size(model: nn.Module, matrix: Matrix) -> int:
    """Scalars of a matrix (its weight, and its bias where it is not fused) or norm."""
    weights = [p for _, p in model.get_submodule(matrix.module).named_parameters(recurse=False)]
    if not matrix.blocks:
        return sum(p.numel() for p in weights)
    rows = sum(b - a for _, a, b in matrix.blocks)
    weight = max(weights, key=lambda p: p.ndim)
    return rows * (weight.numel() // weight.shape[matrix.blocks[0][0]])


def rebalance(model: nn.Module, body: Anatomy, drawn: list[Matrix], share: float, rng: random.Random) -> list[Matrix]:
    """Add or drop single matrices while that brings the drawn parameters nearer to `share` of the body's."""
    pool = [m for layer in body.layers for m in (*layer.matrices, *(Matrix("norm", n) for n in layer.norms))]
    sizes = {m: size(model, m) for m in pool}
    target = share * sum(sizes.values())
    chosen = set(drawn)
    order = rng.sample(pool, len(pool))
    while True:
        now = sum(sizes[m] for m in chosen)
        change = {m: -sizes[m] if m in chosen else sizes[m] for m in order}
        best = min(order, key=lambda m: abs(now + change[m] - target))
        if abs(now + change[best] - target) >= abs(now - target):
            return [m for m in pool if m in chosen]
        chosen.symmetric_difference_update({best})


def everything_but(model: nn.Module, body: Anatomy, drawn: list[Matrix]) -> Selection:
    """A selection in which all that was not drawn moves; fused tensors by blocks. Shares are in its note."""
    out = Selection(whole={n for n, _ in model.named_parameters(remove_duplicate=False)})
    matrices = [m for layer in body.layers for m in layer.matrices]
    fused: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in drawn:
        out.whole -= _own(model, matrix.module)
        if matrix.blocks:
            fused[matrix.module].append(matrix)
    for module, still in fused.items():
        for matrix in matrices:
            if matrix.module == module and matrix not in still:
                out.add_matrix(model, matrix)
    in_body = sum(size(model, m) for m in matrices)
    out.note = {
        "frozen": sorted(f"{m.module}[{m.role}]" for m in drawn),
        "still_share_of_body": sum(size(model, m) for m in drawn if m.role != "norm") / max(in_body, 1),
        "still_share_of_all": 1 - out.count(model) / sum(p.numel() for p in model.parameters()),
    }
    return out


def _own(model: nn.Module, module: str) -> set[str]:
    return {f"{module}.{n}" for n, _ in model.get_submodule(module).named_parameters(recurse=False)}
