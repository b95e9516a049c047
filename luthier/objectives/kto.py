"""KTO: single answers judged good or bad; a good one is to gain on a reference point, a bad one to lose.

    loss = lambda_D (1 - sigmoid( beta (r - z) ))  of a good answer,     lambda_U (1 - sigmoid( beta (z - r) ))  of a bad one

    r    = logp - ref, the gain of an answer                                                        all (A,), A answers
    z    = max(0, mean of logp - ref over mismatched answers), without gradient: what the policy gained on answers that
           have nothing to do with their prompts, an estimate of KL(policy || reference)
    beta               strength of the pull towards the reference
    desirable_weight   lambda_D;  undesirable_weight  lambda_U. Where one kind is rare, keep lambda_D n_D / (lambda_U n_U)
                       between 1 and 4/3
Pairs are taken apart: the chosen answer is a good one, the rejected a bad one. A step on pairs then has twice as many
answers as pairs.
Start:      policy = reference gives z = 0 and lambda / 2 for every answer.
Cost:       a forward pass, without gradient, over one mismatched answer for each.
Paper:      Ethayarajh et al., 2024, arXiv:2402.01306, eq. 8.
Departures: z belongs to the whole optimiser step. Papers and trl take it over a micro-batch (trl over those of all
            processes at once), so that 1 x 8 and 8 x 1 are different losses, and small micro-batches have a noisy z; here
            it is added up over all micro-batches and processes before the first loss. Where a micro-batch is the step both
            are the same. A mismatched answer is drawn once for each answer, from a row with another prompt, when training
            begins; trl takes the neighbour in a fixed order of rows, and asks for that order to be kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.batch import Batch, Example, GroupExample
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError
from luthier.objectives._family import PointLogp, PointObjective


@dataclass(frozen=True)
class KTO(PointObjective):
    paper: ClassVar[str] = "arXiv:2402.01306"
    cards: ClassVar[tuple[int, ...]] = (14,)

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def companions(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Each prompt with answers to other prompts, as many as it has, and no longer than the longest row."""
        groups = [e for e in examples if isinstance(e, GroupExample)]
        longest = max(len(e.prompt) + len(a) for e in groups for a in e.answers)
        return [
            GroupExample(
                e.row, e.prompt, [a[: max(1, longest - len(e.prompt))] for a in _answers_to_others(e, i, groups)]
            )
            for i, e in enumerate(groups)
        ]

    def statistic(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, float]:
        logp, ref = self.gains(scorer, batch)
        return (logp - ref).sum()[None], float(batch.answers)

    def loss(self, points: PointLogp) -> Tensor:
        z = points.shared.clamp(min=0)
        side = torch.where(points.good, 1.0, -1.0).to(points.logp)
        weight = torch.where(points.good, self.desirable_weight, self.undesirable_weight).to(points.logp)
        return weight * torch.sigmoid(-self.beta * side * (points.gain - z))


def _answers_to_others(e: GroupExample, at: int, groups: Sequence[GroupExample]) -> list[list[int]]:
    """An answer of another prompt for each of the answers of example `at`, drawn by its place alone."""
    rng = random.Random(f"mismatched/{at}")
    found = []
    for k in range(len(e.answers)):
        other = next((o for o in rng.choices(groups, k=20) if o.prompt != e.prompt), None)
        other = other or next((o for o in groups if o.prompt != e.prompt), None)
        if other is None:
            raise LuthierError("kto: all rows have the same prompt; its reference point needs answers to other prompts")
        found.append(other.answers[k % len(other.answers)])
    return found
