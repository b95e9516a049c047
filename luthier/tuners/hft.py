"""HFT, half fine-tuning: a random half of every layer's matrices stays at its old value in each training stage.

    theta = {moving, still};   moving <- moving - eta * grad L(theta);   still <- still

    share     p, share of the body that stays still (0: full fine-tuning)
    level     "category": of q k v o two stay still in each layer; of up gate down one or two (1.5 L in all); of the
              norms of a layer one.  "layer": whole layers.  "model": any matrices of the body
    reselect  when a new half is drawn: "stage" (each run), "epoch" or "never" (the seed alone decides)
    balance   "count" as in the paper, or "params": counts are corrected until the still share of body parameters is
              nearest to p (with grouped queries, two of four matrices are not half of the attention)
Start:      the base model. Embeddings, head and final norm always move; biases follow their matrix.
Cost:       no gradient and no optimiser state for the still half: about 1/6 less arithmetic a step.
Paper:      Hui et al., 2024, "HFT: Half Fine-Tuning for Large Language Models", arXiv:2404.18466, section 3.
Departures: fused projections are split into blocks that stay still exactly (core/trainable.py). For p other than 1/2
            counts are rounded down over the layers of a category, the surplus falling on random layers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.anatomy import Anatomy, Matrix, anatomy
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection

FEED_FORWARD = ("up", "gate", "down")


@dataclass(frozen=True)
class HFT(PartialTuner):
    paper: ClassVar[str] = "arXiv:2404.18466"
    cards: ClassVar[tuple[int, ...]] = (5,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate", "reselect"})

    share: float = 0.5
    level: Literal["category", "layer", "model"] = "category"
    reselect: Literal["stage", "epoch", "never"] = "stage"
    balance: Literal["count", "params"] = "count"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise LuthierError(f"tuner.share is {self.share}: a number from 0 to 1")

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        body = anatomy(model)
        groups = self._groups(body)
        still = [m for group in groups for m in _draw(group, self.share, rng)]
        if self.level == "category" and (self.balance == "params" or self.share not in (0, 0.5, 1)):
            still = _rebalance(model, [m for group in groups for layer in group for m in layer], still, self.share, rng)
        return _selection(model, body, still)

    def _groups(self, body: Anatomy) -> list[list[list[Matrix]]]:
        """Groups of layers of matrices; the share is met within each group."""
        layers = body.layers
        if self.level == "layer":
            whole = [[*layer.matrices, *(Matrix("norm", n) for n in layer.norms)] for layer in layers]
            return [_as_units(whole)]
        if self.level == "model":
            return [_as_units([[m] for layer in layers for m in layer.matrices])]
        groups: list[list[list[Matrix]]] = []
        for stack in dict.fromkeys(layer.stack for layer in layers):
            mine = [layer for layer in layers if layer.stack == stack]
            groups.append([[m for m in layer.matrices if m.role in "qkvo"] for layer in mine])
            groups.append([[m for m in layer.matrices if m.role.startswith("cross_")] for layer in mine])
            groups.append([[m for m in layer.matrices if m.role in FEED_FORWARD] for layer in mine])
            groups.append([[Matrix("norm", n) for n in layer.norms] for layer in mine])
        return [g for g in groups if any(g)]


class _Unit(list):
    """Matrices that are drawn together."""


def _as_units(units: list[list[Matrix]]) -> list[list[Any]]:
    return [[_Unit(u)] for u in units]


def _draw(group: list[list[Any]], share: float, rng: random.Random) -> list[Matrix]:
    """Matrices of one group that stay still: equal counts in every layer, the remainder on random layers."""
    if group and group[0] and isinstance(group[0][0], _Unit):  # whole layers, or a pool of matrices
        units = [u[0] for u in group]
        return [m for u in rng.sample(units, int(share * len(units) + 1e-9)) for m in u]
    total = int(share * sum(len(layer) for layer in group) + 1e-9)
    base, extra = divmod(total, len(group)) if group else (0, 0)
    more = set(rng.sample(range(len(group)), extra))
    return [m for i, layer in enumerate(group) for m in rng.sample(layer, min(len(layer), base + (i in more)))]


def _size(model: nn.Module, matrix: Matrix) -> int:
    weights = [p for _, p in model.get_submodule(matrix.module).named_parameters(recurse=False)]
    if not matrix.blocks:
        return sum(p.numel() for p in weights)
    rows = sum(b - a for _, a, b in matrix.blocks)
    weight = max(weights, key=lambda p: p.ndim)
    return rows * (weight.numel() // weight.shape[matrix.blocks[0][0]])


def _rebalance(
    model: nn.Module, pool: list[Matrix], still: list[Matrix], share: float, rng: random.Random
) -> list[Matrix]:
    """Add or release single matrices while that brings the still parameters nearer to `share` of the body's."""
    size = {m: _size(model, m) for m in pool}
    target = share * sum(size.values())
    chosen = set(still)
    order = rng.sample(pool, len(pool))
    while True:
        now = sum(size[m] for m in chosen)
        best = min(order, key=lambda m: abs(now + (-size[m] if m in chosen else size[m]) - target))
        after = now + (-size[best] if best in chosen else size[best])
        if abs(after - target) >= abs(now - target):
            return [m for m in pool if m in chosen]
        chosen.symmetric_difference_update({best})


def _selection(model: nn.Module, body: Anatomy, still: list[Matrix]) -> Selection:
    out = Selection(whole={n for n, _ in model.named_parameters(remove_duplicate=False)})
    fused: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in still:
        if matrix.blocks:
            fused[matrix.module].append(matrix)
        else:
            out.whole -= {
                f"{matrix.module}.{n}" for n, _ in model.get_submodule(matrix.module).named_parameters(recurse=False)
            }
    matrices = [m for layer in body.layers for m in layer.matrices]
    for module, frozen in fused.items():
        out.whole -= {f"{module}.{n}" for n, _ in model.get_submodule(module).named_parameters(recurse=False)}
        for matrix in matrices:
            if matrix.module == module and matrix not in frozen:
                out.add_matrix(model, matrix)
    in_body = sum(_size(model, m) for m in matrices)
    stays = sum(_size(model, m) for m in still if m.role != "norm")
    out.note = {
        "frozen": sorted(f"{m.module}[{m.role}]" for m in still),
        "still_share_of_body": stays / max(in_body, 1),
        "still_share_of_all": 1 - out.count(model) / sum(p.numel() for p in model.parameters()),
    }
    return out
