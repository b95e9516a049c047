"""MORepair against a float64 loop over rows, and over all rows against the mean of two means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, groups, model_of
from luthier.checks.objectives import Plain
from luthier.core import catalog
from luthier.core.batch import collate_groups
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """- log pi(repair) - guidance ratio log pi(guided repair); their tokens, weighted likewise."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for e in examples:
        for share, answer in zip((1.0, objective.guidance * objective.ratio), e.answers, strict=True):
            total, weight = total - share * policy.answer_logp(e.prompt, answer), weight + share * len(answer)
    return total, weight


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs)


def oracle_two_means() -> None:
    """(L_repair + lambda L_guided) / (1 + lambda), each mean over single sequences."""
    examples, model = list(groups(6)), model_of("llama").double()
    plain = Plain(model)
    for guidance in (0.0, 0.3, 1.0, 4.0):
        objective = replace(catalog.load("objectives", _NAME)(), guidance=guidance).for_examples(examples)
        means = []
        for k in (0, 1):
            said = [plain.answer_logp(e.prompt, e.answers[k]) for e in examples]
            means.append(-torch.stack(said).sum() / sum(len(e.answers[k]) for e in examples))
        wanted = (means[0] + guidance * means[1]) / (1 + guidance)
        for share in (True, False):
            loss = objective.compute(Scorer(model), collate_groups(examples, PAD, share_prompt=share))
            close((loss.sum / loss.weight).detach(), wanted.detach(), f"loss at guidance {guidance} and the two means")
