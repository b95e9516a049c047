"""Adversarial: learn a task while what the head says may not change when input embeddings are pushed where it changes most.

    loss = l(z(e), y) + strength D(z(e), z(e + s * d))                           of a row; l the task's own loss
    d    = sigma u,  then `steps` times  d + step_size g / |g|_inf,  g = grad_d D(z(e + s * d), sg z(e))   u ~ N(0, 1)
    D    symmetric KL of classes, the mean over labels of that of yes and no, or (z - z')^2 of numbers

    e (B, T, D) input embeddings, z (B, C) what the head says, d (B, T, D) the push; |.|_inf over the D numbers of a token
    s (B, T, 1)  `relative`: the standard deviation of a token's embedding, so that the push is one on normalised
                 embeddings and does not depend on their scale; else 1
    of           the task's objective with its options: {name: classification}
Padding and the tokenizer's special tokens stay where they are. d and s have no gradient. Held-out rows have l alone.
Start:      that of the task for a head that says nothing.
Cost:       1 + steps forward passes more, and `steps` gradients of the input.
Paper:      Zhong et al., 2023, "Bag of Tricks for Effective Language Model Pretraining and Downstream Adaptation: A Case
            Study on GLUE", arXiv:2302.09268; the loss as in Jiang et al., 2020, "SMART", arXiv:1911.03437, eq. 1 and 2, and
            the scale-invariant form as in He et al., 2021, "DeBERTa", arXiv:2006.03654.
Departures: the first push is drawn by data row and place, and dropout is the same for e and e + s d, so that neither the
            split of a step nor dropout is measured. A token without gradient is not pushed. No projection: after K steps
            |d|_inf is at most K step_size beyond the first draw. Dropout of the next batch is what it were without the push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.batch import Batch, Example
from luthier.core.config import build
from luthier.core.logprobs import Scorer
from luthier.core.loop import HELD_OUT
from luthier.core.method import Loss, LuthierError
from luthier.core.noise import changed_embeddings, embedding_weight, normal_noise, same_dropout
from luthier.objectives._family import HeadObjective


@dataclass(frozen=True)
class Adversarial(HeadObjective):
    paper: ClassVar[str] = "arXiv:2302.09268"
    cards: ClassVar[tuple[int, ...]] = (3,)

    of: dict[str, Any] = field(default_factory=lambda: {"name": "classification"})
    strength: float = 1.0
    steps: int = 1
    step_size: float = 1e-3
    sigma: float = 1e-5
    relative: bool = True
    special: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.inner, HeadObjective) or isinstance(self.inner, Adversarial):
            raise LuthierError("objective.of: a task with a head is needed: classification or regression")
        if self.steps < 0 or self.sigma < 0:
            raise LuthierError("objective: steps and sigma cannot be negative")

    @classmethod
    def example(cls) -> Self:
        return cls(step_size=0.1, sigma=0.1)

    @cached_property
    def inner(self) -> Any:
        return build("objectives", self.of, "objective.of")

    @property
    def problems(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.problems

    def _of(self, inner: Any) -> Self:
        return replace(self, of={"name": inner.name, **asdict(inner)})

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same objective that leaves the tokenizer's special tokens alone."""
        return replace(self._of(self.inner.for_tokenizer(tokenizer)), special=tuple(tokenizer.all_special_ids))

    def for_examples(self, examples: Sequence[Example]) -> Self:
        return self._of(self.inner.for_examples(examples))

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        return self.inner.loss(outputs, label)

    def figures(self, outputs: Tensor, label: Tensor) -> dict[str, tuple[Tensor, float]]:
        return self.inner.figures(outputs, label)

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        key = None if step == HELD_OUT else int(rng.integers(2**62))
        return replace(batch, extras={**batch.extras, "push": key})

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.label is not None
        again = same_dropout(scorer.device)
        outputs = self.said(scorer, batch)
        found = self.losses(outputs, batch).sum()
        figures = self.figures(outputs.detach(), batch.label)
        if batch.extras.get("push") is None or not self.strength:
            return Loss(found, self.weight(batch), figures)
        push = self.push(scorer, batch, outputs.detach(), again)
        with again, self._pushed(scorer, batch, push):
            smooth = divergence(outputs, self.said(scorer, batch), batch.label).sum()
        figures["smoothness"] = (smooth.detach(), self.weight(batch))
        return Loss(found + self.strength * smooth, self.weight(batch), figures)

    def push(self, scorer: Scorer, batch: Batch, target: Tensor, again: same_dropout) -> Tensor:
        """d (B, T, D): from a draw, up the divergence from `target`. No parameter gets a gradient."""
        assert batch.label is not None
        width = embedding_weight(scorer.plain).shape[1]
        special = torch.tensor(self.special, device=batch.ids.device)
        moves = (batch.mask & ~torch.isin(batch.ids, special))[..., None].to(target)
        d = moves * normal_noise(batch, self.sigma, batch.extras["push"], width, batch.ids.device)
        for _ in range(self.steps):
            d.requires_grad_()
            with torch.enable_grad(), again, self._pushed(scorer, batch, d):
                away = divergence(self.said(scorer, batch), target, batch.label).sum()
                (g,) = torch.autograd.grad(away, d, allow_unused=True)
            if g is None:
                raise LuthierError(
                    "objective adversarial follows the gradient of the input embeddings, and this tuner lets none reach them: "
                    "choose another tuner, or steps: 0"
                )
            largest = g.abs().amax(-1, keepdim=True)
            d = d.detach() + self.step_size * moves * torch.where(largest > 0, g / largest, 0.0)
        return d

    def _pushed(self, scorer: Scorer, batch: Batch, d: Tensor) -> Any:
        def change(embedded: Tensor) -> Tensor:
            scale = embedded.detach().std(-1, keepdim=True, correction=0) if self.relative else 1.0
            return embedded + scale * d.to(embedded.dtype)

        return changed_embeddings(scorer.plain, batch.ids, change)


def divergence(a: Tensor, b: Tensor, label: Tensor) -> Tensor:
    """(B,) how far two outputs (B, C) are apart, the same both ways."""
    if label.ndim == 2:  # KL(p || q) + KL(q || p) of a Bernoulli is (p - q) (a - b)
        return ((torch.sigmoid(a) - torch.sigmoid(b)) * (a - b)).mean(1)
    if a.shape[1] == 1:
        return (a - b).square()[:, 0]
    a, b = F.log_softmax(a, -1), F.log_softmax(b, -1)
    return ((a.exp() - b.exp()) * (a - b)).sum(-1)
