"""Child-Tuning: only a sub-network, the child, moves: another random one in each step, or one that the task chose.

    w <- w - eta * M * grad L(w) / p           M_i ~ Bernoulli(p), drawn in each step                    ("task_free")
    w <- w - eta * M * grad L(w)               M_i = 1  iff  F_i is among the largest p of all, once     ("task_driven")
    F_i = 1/n sum_j (d log p(y_j | x_j) / d w_i)^2                        Fisher information over n rows, before training

    variant  "task_free" (the paper's F) or "task_driven" (D)
    share    p, share of the elements that are in the child
    rows     n, rows of the run's data that the Fisher information is computed on
Start:      the base model. A new task head always moves as a whole.
Cost:       that of full fine-tuning, and a mask and a copy of what is masked; "task_driven": n backward passes before.
            "task_driven" moves a share p of the elements: the rest is bit-identical, which a delta file profits from.
Paper:      Xu et al., 2021, "Raise a Child in Large Language Model: Towards Effective and Generalizable Fine-tuning",
            arXiv:2109.05687, equations 2 to 4.
Departures: what is masked in a step does not move in it, neither by weight decay nor by Adam's momentum (the authors'
            optimiser masks the gradient alone), so with Adam a rate moves "task_free" less far. The child is chosen from
            the whole body, embeddings included; the authors leave embeddings unmasked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.anatomy import in_task_head
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.probe import Probe
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class ChildTuning(PartialTuner):
    paper: ClassVar[str] = "arXiv:2109.05687"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "generate"})

    variant: Literal["task_free", "task_driven"] = "task_free"
    share: float = 0.3
    rows: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise LuthierError(f"tuner.share is {self.share}: a number above 0 and at most 1")
        if self.rows < 1:
            raise LuthierError(f"tuner.rows is {self.rows}: the Fisher information needs at least one row")

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        """All of the body; a task-driven child is chosen out of it by `choose`."""
        keep = self.share if self.variant == "task_free" else 1.0
        return Selection(whole=set(_body(model)), keep=keep, seed=rng.getrandbits(31))

    @property
    def chooses(self) -> bool:
        return self.variant == "task_driven"

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        body = _body(model)
        with probe.rows(self.rows, list(body)) as losses:
            entries = largest(fisher_information(body, losses), self.share)
        return Selection(entries=entries, note={"share": self.share, "rows": len(losses), "tensors": len(entries)})

    def parameter_count(self, model: nn.Module) -> int:
        total = sum(p.numel() for p in _body(model).values())
        return total if self.variant == "task_free" else round(self.share * total)


def _body(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if not in_task_head(n)}


def fisher_information(body: dict[str, nn.Parameter], losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Mean square of the gradient of one row's log-likelihood, in float32, by tensor."""
    found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in body.items()}
    for loss_of in losses:
        gradients = torch.autograd.grad(loss_of(), list(body.values()), allow_unused=True)
        for total, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float() ** 2 / len(losses)
    return found


def largest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Flat indices of the largest `share` of all elements together, by tensor; tensors without one are left out."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    moves = torch.zeros_like(flat, dtype=torch.bool)
    moves[flat.topk(round(share * flat.numel())).indices] = True
    parts = moves.split([s.numel() for s in scores.values()])
    return {n: part.nonzero().flatten() for n, part in zip(scores, parts, strict=True) if bool(part.any())}
