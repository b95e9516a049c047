"""What edits share: sums of checkpoints, task vectors against a base, and zeros where a score says so.

TaskVectors  theta = theta_0 + lambda * combine(w_1 tau_1, ..., w_n tau_n),   tau_i = theta_i - theta_0
             the last checkpoint is the base theta_0
Pruning      W = W * (1 - m), m chosen by a score of every entry of the layers' matrices; rows are features of the output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.anatomy import Weight, weights
from luthier.core.method import Edit, LuthierError
from luthier.core.probe import Probe
from luthier.core.shards import PIECE

State = Mapping[str, Tensor]


def wide(tensor: Tensor) -> Tensor:
    """In float32, float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def weighted_sum(tensors: Sequence[Tensor], by: Sequence[float]) -> Tensor:
    """sum_i by_i tensor_i in `wide` numbers; one tensor by 1 alone is itself, to the last bit."""
    used = [(t, w) for t, w in zip(tensors, by, strict=True) if w != 0]
    if len(used) == 1 and used[0][1] == 1:
        return used[0][0]
    total = torch.zeros_like(tensors[0], dtype=torch.promote_types(tensors[0].dtype, torch.float32))
    for tensor, weight in used:
        total.add_(tensor, alpha=weight)
    return total


def per_model(weight: float | tuple[float, ...], models: int) -> list[float]:
    """One number for each model."""
    if not isinstance(weight, tuple):
        return [float(weight)] * models
    if len(weight) != models:
        raise LuthierError(f"edit.weight has {len(weight)} numbers for {models} models")
    return list(weight)


def between(value: float, low: float, high: float, key: str) -> None:
    if not low <= value <= high:
        raise LuthierError(f"edit.{key} is {value}: a number from {low:g} to {high:g}")


# -------------------------------------------------------------------------------------------- task vectors


@dataclass(frozen=True)
class TaskVectors(Edit):
    """A method says how task vectors become one.

    weight     w, one number for all models or one for each (mergekit's `weight`)
    lambda     scale of the sum (written `lambda` in a recipe)
    normalize  weights are divided by their sum
    """

    inputs: ClassVar[tuple[int, int | None]] = (2, None)
    elementwise: ClassVar[bool] = True
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree"})

    weight: float | tuple[float, ...] = 1.0
    lambda_: float = 1.0
    normalize: bool = False

    def combine(self, vectors: list[Tensor], by: list[float], plan: Any) -> Tensor:
        """One vector of n weighted ones, or pieces of them. `vectors` are this call's own to change."""
        raise NotImplementedError

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        base = wide(tensors[-1])
        vectors = [wide(t) - base for t in tensors[:-1]]
        return base + self.lambda_ * self.combine(vectors, per_model(self.weight, len(vectors)), plan)

    def shares(self, models: int) -> list[float]:
        """Weights, divided by their sum where that is asked for."""
        by = per_model(self.weight, models)
        if not self.normalize:
            return by
        if sum(by) == 0:
            raise LuthierError("edit.weight adds up to 0, which cannot be normalised: set normalize: false")
        return [w / sum(by) for w in by]


def agreeing(vectors: list[Tensor], by: Sequence[float], normalize: bool) -> Tensor:
    """Elected signs, and the weighted mean (or sum) of the vectors that agree with them:

    sign = sgn sum_i w_i tau_i,   sum_{i in A} w_i tau_i / sum_{i in A} w_i,   A = {i: sgn tau_i = sign != 0}
    """
    signs = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, by, strict=True):
        signs.add_(vector, alpha=weight)
    signs.sign_()
    total, count = torch.zeros_like(signs), torch.zeros_like(signs)
    for vector, weight in zip(vectors, by, strict=True):
        agrees = (vector.sign() == signs) & (signs != 0)
        total.add_(vector * agrees, alpha=weight)
        count.add_(agrees, alpha=weight)
    return total / torch.where(count == 0, 1.0, count) if normalize else total


# ------------------------------------------------------------------------------------------------- pruning


@dataclass
class Places:
    """Where to prune: the weights meant, by name in the checkpoint; norms of their inputs; what is known besides.

    counts  name -> entries that became zero, filled as tensors are made
    """

    weights: dict[str, Weight]
    norms: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    choice: Any = None
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruning(Edit):
    """A method gives scores of a matrix and says which entries go."""

    inputs: ClassVar[tuple[int, int | None]] = (1, 1)
    capabilities: ClassVar[frozenset[str]] = frozenset({"zeros"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"architecture", "data"} if self.by_data else {"architecture"})

    @property
    def by_data(self) -> bool:
        """Whether scores take the norms of a matrix's inputs."""
        return False

    def gone(self, name: str, scores: Callable[[], Iterator[Tensor]], places: Places) -> Iterator[Tensor]:
        """True where an entry of the matrix `name` becomes zero, for each block of `scores()`: some rows by all inputs."""
        raise NotImplementedError

    def roles(self) -> Sequence[str] | None:
        """Roles of the matrices that are pruned; None: all of the layers'."""
        return None

    def places(self, states: Sequence[State], model: nn.Module) -> dict[str, Weight]:
        return weights(model, self.roles())

    def plan(self, states: Sequence[State], model: nn.Module | None = None, probe: Probe | None = None) -> Places:
        if model is None or (self.by_data and probe is None):
            raise LuthierError(f"{self.name} needs the architecture" + " and data" * self.by_data)
        places = Places(self.places(states, model))
        if probe is not None and self.by_data:
            found = probe.input_norms([w.module for w in places.weights.values()])
            places.norms = {name: found[w.module] for name, w in places.weights.items() if w.module in found}
            places.skipped = sorted(places.weights.keys() - places.norms.keys())
            for name in places.skipped:  # a matrix that no row passes has no score
                del places.weights[name]
        return places

    def scores(self, weight: Tensor, norms: Tensor | None) -> Tensor:
        """|W_ij| or |W_ij| ||X_j||, of (rows, inputs)."""
        size = wide(weight).abs()
        return size if norms is None else size * norms.to(size)

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Places) -> Tensor:
        if name not in plan.weights:
            return tensors[0]
        out = tensors[0].clone()
        plan.counts[name] = plan.sizes[name] = 0
        for (key, old), (_, new) in zip(groups(name, tensors[0], plan), groups(name, out, plan), strict=True):
            scores = partial(self.by_block, old, plan.norms.get(name))
            for block, gone in zip(blocks(new), self.gone(key, scores, plan), strict=True):
                block.masked_fill_(gone, 0)
                plan.counts[name] += int(gone.sum())
                plan.sizes[name] += gone.numel()
        return out

    def by_block(self, matrix: Tensor, norms: Tensor | None) -> Iterator[Tensor]:
        """`scores` of a matrix (rows, inputs), some rows at a time."""
        return (self.scores(block, norms) for block in blocks(matrix))

    def found(self, plan: Places) -> dict[str, Any]:
        total, gone = sum(plan.sizes.values()), sum(plan.counts.values())
        return {"entries": total, "pruned": gone, "share": gone / max(total, 1), "skipped": plan.skipped}


def groups(name: str, tensor: Tensor, places: Places) -> Iterator[tuple[str, Tensor]]:
    """The matrices (rows, inputs) that a tensor holds, views of it, each with a name of its own."""
    place = places.weights[name]
    matrix = tensor.T if place.transposed else tensor
    for start, stop in place.rows or ((0, len(matrix)),):
        yield f"{name}[{start}:{stop}]" if place.rows else name, matrix[start:stop]


def blocks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Some rows at a time, of no more than PIECE numbers where a row is not longer."""
    return matrix.split(max(1, PIECE // matrix.shape[1]))
