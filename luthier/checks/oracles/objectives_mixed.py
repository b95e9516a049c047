"""The mixture of the example against a float64 loop over rows, and DPO with SFT against the two of them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, groups, model_of
from luthier.core import catalog
from luthier.core.batch import GroupExample, SourceTargetExample, TextExample, collate_groups, collate_text
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def _said(e: Any, policy: Any) -> list[tuple[Tensor, int, int]]:
    """Distribution (V,), token and number of the answer, of each scored token."""
    if isinstance(e, SourceTargetExample):
        logp = policy.decoder_logp(e.ids, [policy.start, *e.target[:-1]])
        return [(logp[t], token, 0) for t, token in enumerate(e.target)]
    if isinstance(e, GroupExample):
        out = []
        for k, answer in enumerate(e.answers):
            logp = policy.logp(e.prompt + answer)
            out += [(logp[len(e.prompt) + t - 1], token, k) for t, token in enumerate(answer)]
        return out
    logp = policy.logp(e.ids)
    return [(logp[t - 1], e.ids[t], 0) for t in range(1, len(e.ids)) if e.counts[t]]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """1 / 4 of SFT on first answers, and 0.5 / 8 of SFT on all; rows."""
    total = torch.zeros((), dtype=torch.float64)
    for e in examples:
        for logp, token, number in _said(e, policy):
            if number == 0:
                total = total - logp[token] / 4
            total = total - 0.5 / 8 * logp[token]
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    """log V a token, weighted as the parts are."""
    total = 0.0
    for e in examples:
        first = len(e.answers[0]) if isinstance(e, GroupExample) else _scored(e)
        every = sum(map(len, e.answers)) if isinstance(e, GroupExample) else first
        total += first / 4 + 0.5 * every / 8
    return total / len(examples) * math.log(outputs)


def _scored(e: Any) -> int:
    return len(e.target) if isinstance(e, SourceTargetExample) else sum(e.counts[1:])


def oracle_dpo_and_sft() -> None:
    """Over all rows, c_1 times the mean loss of SFT on chosen answers and c_2 times that of DPO; each by itself."""
    examples, model = list(groups(6)), model_of("llama")
    parts = ({"name": "sft", "answer": 0}, {"name": "dpo", "weight": 0.3, "beta": 0.5})
    mixed = catalog.load("objectives", _NAME)(parts=parts).for_examples(examples)
    batch = collate_groups(examples, PAD)
    batch.reference = torch.linspace(-30, -20, 12)
    found = mixed.compute(Scorer(model), batch)
    chosen = [
        TextExample(e.row, e.prompt + e.answers[0], [False] * len(e.prompt) + [True] * len(e.answers[0]))
        for e in examples
    ]
    dpo = catalog.load("objectives", "dpo")(beta=0.5).compute(Scorer(model), batch)
    sft = catalog.load("objectives", "sft")().compute(Scorer(model), collate_text(chosen, PAD))
    wanted = sft.sum / sft.weight + 0.3 * dpo.sum / dpo.weight
    close((found.sum / found.weight).detach(), wanted.detach(), "mixture and its parts")
