"""AdaLoRA: low-rank changes of all matrices with one budget of ranks, which moves to where it matters during the run.

    W' = W + (alpha / r) P diag(e) Q                     P (outputs, r), e (r,), Q (r, inputs)
    loss + orthogonality sum (|P^T P - I|^2 + |Q Q^T - I|^2)      over all matrices

    I_t = |w dL/dw|      S_t = beta1 S_{t-1} + (1 - beta1) I_t      U_t = beta2 U_{t-1} + (1 - beta2) |I_t - S_t|
    s(w) = S U           score of triplet i of a matrix: s(e_i) + mean_j s(P_ji) + mean_j s(Q_ij)

    kept(t) = b for t <= t_i;  c + (b - c) (1 - (t - t_i) / (T - t_f - t_i))^3;  c from T - t_f on      b = r n, c = r' n

    r, target  r, the ranks a matrix starts with; r', those it has on average at the end;  n matrices, T steps
    warm, last shares of the run: t_i = warm T steps keep all ranks, the last t_f = last T steps move none
    every      steps between two choices: e_i = 0 for all triplets but the kept(t) with the largest scores; until the last phase
               they go on being trained, and may come back
Start:      e = 0: exactly the base model. P and Q normal with spread `std`.
Cost:       r (outputs + inputs + 1) scalars a matrix in training, and two running means for each, which checkpoints hold and
            adapters do not; merged, nothing.
Paper:      Zhang et al., 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512, equations 4
            and 8 to 12, algorithm 1.
Departures: importance is taken behind the optimiser step, from the new weights and the step's gradients, and so is the choice; the
            last choice does not count its own step (both as in peft). Adapters keep all r ranks of a matrix, those without
            budget as zeros of e. The penalty counts once a step and is not divided by the number of matrices (peft: a mean
            of norms that are not squared).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import ReparamPart, ReparamTuner
from luthier.core.method import LuthierError

NAMES = ("P", "e", "Q")


class Triplets(ReparamPart):
    """The factors of one matrix, what is known of their importance, and the triplets that have budget."""

    kept: Tensor

    def __init__(self, inputs: int, outputs: int, r: int, scale: float, std: float):
        super().__init__()
        self.P = nn.Parameter(torch.randn(outputs, r) * std)
        self.e = nn.Parameter(torch.zeros(r))
        self.Q = nn.Parameter(torch.randn(r, inputs) * std)
        self.scale = scale
        self.register_buffer("kept", torch.ones(r, dtype=torch.bool), persistent=False)
        for name in NAMES:
            for what in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{what}_{name}", torch.zeros_like(getattr(self, name)), persistent=False)

    def delta_weight(self) -> Tensor:
        return self.scale * (self.P * self.e) @ self.Q

    def delta(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.Q) * self.e, self.P)

    def distance(self) -> Tensor:
        """|P^T P - I|^2 + |Q Q^T - I|^2."""
        unit = torch.eye(len(self.e), device=self.e.device, dtype=self.e.dtype)
        return (self.P.T @ self.P - unit).square().sum() + (self.Q @ self.Q.T - unit).square().sum()

    @torch.no_grad()
    def note(self, beta1: float, beta2: float) -> None:
        """Take the gradients of a step into the running means."""
        for name in NAMES:
            weight: Tensor = getattr(self, name)
            if weight.grad is None:
                continue
            now = (weight * weight.grad).abs()
            sensitivity, uncertainty = (getattr(self, f"{what}_{name}") for what in ("sensitivity", "uncertainty"))
            sensitivity.lerp_(now, 1 - beta1)
            uncertainty.lerp_((now - sensitivity).abs(), 1 - beta2)

    def scores(self) -> Tensor:
        """(r,) of the triplets."""
        P, e, Q = (getattr(self, f"sensitivity_{n}") * getattr(self, f"uncertainty_{n}") for n in NAMES)
        return e + P.mean(0) + Q.mean(1)


@dataclass(frozen=True)
class AdaLoRA(ReparamTuner):
    paper: ClassVar[str] = "arXiv:2303.10512"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "merge", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    r: int = 12
    target: int = 8
    alpha: float = 24.0
    orthogonality: float = 0.1
    warm: float = 0.1
    last: float = 0.3
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    std: float = 0.02
    targets: tuple[str, ...] = ("q", "k", "v", "o", "up", "down")

    def __post_init__(self) -> None:
        if not 1 <= self.target <= self.r:
            raise LuthierError(f"tuner.target is {self.target}: between 1 and r = {self.r}")
        if self.every < 1:
            raise LuthierError(f"tuner.every is {self.every}: at least 1")
        if min(self.warm, self.last) < 0 or self.warm + self.last >= 1:
            raise LuthierError(f"tuner.warm and tuner.last are {self.warm} and {self.last}: together below 1")

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, target=2, alpha=8.0, every=2, targets=("q", "v"))

    def build(self, inputs: int, outputs: int) -> Triplets:
        return Triplets(inputs, outputs, self.r, self.alpha / self.r, self.std)

    def parameter_count(self, model: nn.Module) -> int:
        return sum(self.r * (i + o + 1) for i, o in self.shapes(model))

    def penalty(self, model: nn.Module) -> Tensor | None:
        if not self.orthogonality:
            return None
        return self.orthogonality * torch.stack([part.distance() for part in _parts(model)]).sum()

    def budget(self, step: int, total: int, matrices: int) -> int:
        """Triplets that are kept behind step `step`."""
        b, c, warm, end = self.r * matrices, self.target * matrices, self._warm(total), self._end(total)
        if step <= warm:
            return b
        if step >= end:
            return c
        return int(c + (b - c) * (1 - (step - warm) / (end - warm)) ** 3)

    def after_step(self, model: nn.Module, step: int, total: int) -> None:
        parts, end = _parts(model), self._end(total)
        if step < end:
            for part in parts:
                part.note(self.beta1, self.beta2)
        if step == end or (self._warm(total) < step < end and step % self.every == 0):
            _keep(parts, self.budget(step, total, len(parts)))
            _clear(parts)
        elif step > end:
            _clear(parts)

    def _warm(self, total: int) -> int:
        return round(self.warm * total)

    def _end(self, total: int) -> int:
        """The step behind which ranks move no more."""
        return max(1, total - round(self.last * total))


def _parts(model: nn.Module) -> list[Triplets]:
    """Of the adapter that is trained."""
    return [m for m in model.modules() if isinstance(m, Triplets) and m.e.requires_grad]


@torch.no_grad()
def _keep(parts: list[Triplets], budget: int) -> None:
    """Budget for the triplets with the largest scores, over all matrices; of equal ones the first."""
    scores = torch.cat([part.scores() for part in parts])
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[scores.sort(descending=True, stable=True).indices[:budget]] = True
    for part, mine in zip(parts, kept.split([len(p.e) for p in parts]), strict=True):
        part.kept.copy_(mine)


@torch.no_grad()
def _clear(parts: list[Triplets]) -> None:
    for part in parts:
        part.e.masked_fill_(~part.kept, 0.0)
