"""What objectives of the model's own answers share: ratios, clipping, estimates of a KL divergence, and columns of numbers.

    ratio = pi / pi_old                                    pi_old: the model that wrote the answers
    surrogate = min( ratio A, clip(ratio, 1 - low, 1 + high) A )        A: what the token or answer was worth

Where ratio = 1 the gradient of the surrogate is A times that of log pi: the plain policy gradient. It is zero where the
ratio has left the interval in the direction of A. Exponents are held at 80, so that they stay finite in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.batch import Batch, GroupExample
from luthier.core.method import LuthierError, OnlineObjective

LARGEST = 80.0


@dataclass(frozen=True)
class PolicyObjective(OnlineObjective):
    """Examples are answered prompts. A token whose ratio is clipped has no gradient."""

    rows = ("prompts",)
    idle: ClassVar[bool] = True

    epsilon: float = 0.2

    @property
    def strength(self) -> float:
        """Of the pull towards the reference; at 0 nobody is asked."""
        return getattr(self, "beta", 0.0)

    @property
    def reference(self) -> str:  # type: ignore[override]
        return "model" if self.strength else ""

    @property
    def bounds(self) -> tuple[float, float]:
        """How far below and above 1 a ratio counts; `epsilon_high` is that of above where it is given."""
        low, high = self.epsilon, getattr(self, "epsilon_high", None)
        return low, low if high is None else high


def column(batch: Batch, name: str, like: Tensor) -> Tensor:
    """A column of the examples of a batch, one after another, (N,) or (A,)."""
    if name not in batch.extras:
        raise LuthierError(
            "the rows have prompts and no answers yet: the recipe needs a section rollouts, with a reward"
        )
    return torch.cat(list(batch.extras[name])).to(like)


def with_columns(answered: Sequence[GroupExample], columns: dict[str, Sequence[Tensor]]) -> list[GroupExample]:
    """The examples with more columns, of one tensor for each example."""
    return [replace(e, extras={**e.extras, **{n: c[k] for n, c in columns.items()}}) for k, e in enumerate(answered)]


def scores_of(example: GroupExample) -> Tensor:
    """Rewards (K,) of the answers, float64."""
    assert example.scores is not None
    return torch.tensor(example.scores, dtype=torch.float64)


def by_answer(example: GroupExample, name: str) -> list[Tensor]:
    """A column (N,) of an example, split into its answers, float64."""
    return list(example.extras[name].double().split([len(a) for a in example.answers]))


def ratio_of(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=LARGEST).exp()


def surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """What is to be made large, of the shape of `ratio`."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Whether the clip is at work."""
    return ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))


def k1(logp: Tensor, ref: Tensor) -> Tensor:
    """log pi / pi_ref: right on average, of either sign."""
    return logp - ref


def k2(logp: Tensor, ref: Tensor) -> Tensor:
    """Half of its square: never negative, and its gradient is that of the divergence on average."""
    return (logp - ref) ** 2 / 2


def k3(logp: Tensor, ref: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log pi_ref / pi: right on average and never negative."""
    d = ref - logp
    return ratio_of(d) - d - 1


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Estimates (N,) of KL(pi || pi_ref) at the tokens that pi drew, by Schulman's names."""
