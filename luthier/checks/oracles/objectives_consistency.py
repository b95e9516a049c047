"""Consistency against a float64 loop over wordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, wordings
from luthier.core import catalog
from luthier.core.batch import collate_groups
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """(1 - alpha) mean -log pi + alpha mean KL(first wording || others) of each row; the number of rows."""
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        task, gap, first = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), None
        for before, answer in zip(e.given, e.answers, strict=True):
            ids, start = e.prompt + answer, len(e.prompt) + before
            logp = policy.logp(ids)
            said = [logp[t - 1, ids[t]] for t in range(start, len(ids))]
            task = task - torch.stack(said).mean() / len(e.answers)
            here = logp[start - 1]
            if first is None:
                first = here.detach() if objective.stop_gradient else here
            else:
                gap = gap + (first.exp() * (first - here)).sum() / (len(e.answers) - 1)
        total = total + (1 - objective.alpha) * task + objective.alpha * gap
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    return 0.5 * math.log(outputs)


def oracle_hidden() -> None:
    """1 - cos of the last states, which transformers gives by itself, after the final norm."""
    model, examples = model_of("llama").double(), list(wordings(5, 3))
    found = replace(catalog.load("objectives", _NAME)(), align="hidden", alpha=1.0).compute(
        Scorer(model), collate_groups(examples, PAD)
    )
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        states = []
        for before, answer in zip(e.given or (), e.answers, strict=True):
            ids = torch.tensor([e.prompt + answer])
            out = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            states.append(out[len(e.prompt) + before - 1])
        for other in states[1:]:
            total = total + (1 - torch.cosine_similarity(other, states[0], dim=0)) / (len(states) - 1)
    close(found.sum.detach(), total.detach(), "1 - cos of last states")
