"""Contrastive against a float64 loop over single texts, and against torch's cross-entropy and cosine on whole matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of, searches
from luthier.core import catalog
from luthier.core.batch import collate_searches
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def _vector(objective: Any, policy: Any, ids: Sequence[int]) -> Tensor:
    states = policy.states(ids)
    return {"cls": states[0], "mean": sum(states) / len(states), "last": states[-1]}[objective.pooling]


def _score(objective: Any, q: Tensor, d: Tensor) -> Tensor:
    s = sum(a * b for a, b in zip(q, d))
    if objective.similarity == "cosine":
        s = s / (sum(a * a for a in q) ** 0.5 * sum(a * a for a in d) ** 0.5)
    default = 0.05 if objective.similarity == "cosine" else 1.0
    return s / (objective.temperature or default)  # type: ignore[return-value]


def _choices(group: Sequence[Any], mine: Any) -> list[tuple[int, int]]:
    """Documents that query `mine` chooses from, as (example, document) of the group; its right one first."""
    answers = {e.keys[0] for e in group if e.query_key == mine.query_key}
    others = [(i, k) for i, e in enumerate(group) for k, key in enumerate(e.keys) if key not in answers]
    return [(next(i for i, e in enumerate(group) if e is mine), 0), *others]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    """Each text goes through the model once: some norms are float32 inside, and round each of its visits."""
    total = torch.zeros((), dtype=torch.float64)
    for at in range(0, len(examples), objective.group):
        group = examples[at : at + objective.group]
        queries = [_vector(objective, policy, e.query) for e in group]
        documents = {
            (i, k): _vector(objective, policy, d) for i, e in enumerate(group) for k, d in enumerate(e.documents)
        }
        for q, e in zip(queries, group):
            s = [_score(objective, q, documents[c]) for c in _choices(group, e)]
            top = max(float(x.detach()) for x in s)
            total = total + top + torch.log(sum(torch.exp(x - top) for x in s)) - s[0]  # type: ignore[arg-type]
    return total, float(len(examples))


def start(examples: Sequence[Any], outputs: int) -> float:
    size = catalog.load("objectives", _NAME).example().group
    groups = [examples[i : i + size] for i in range(0, len(examples), size)]
    return sum(math.log(len(_choices(g, e))) for g in groups for e in g) / len(examples)


def _found(objective: Any, architecture: str, examples: Sequence[Any]) -> tuple[Any, Tensor]:
    model = model_of(architecture).double()
    return model, objective.compute(Scorer(model), collate_searches(list(examples), PAD)).sum.detach()


def oracle_options() -> None:
    """Every pooling and similarity, group sizes that do and do not divide the rows, by the loop."""
    from luthier.checks.objectives import Plain

    base = catalog.load("objectives", _NAME).example()
    options: list[dict[str, Any]] = [
        {"pooling": "cls"}, {"pooling": "last", "group": 4}, {"similarity": "cosine"},
        {"similarity": "cosine", "temperature": 0.3, "group": 6}, {"group": 1, "temperature": 4.0},
    ]  # fmt: skip
    for told in options:
        for architecture in ("bert-embedding", "llama-embedding"):
            objective = replace(base, **told)
            model, found = _found(objective, architecture, searches())
            wanted, _ = equation(objective, searches(), Plain(model), None, None)
            close(found, wanted.detach(), f"loss with {told} on {architecture}")


@torch.no_grad()
def oracle_torch() -> None:
    """One group without a document twice: cross-entropy of a whole matrix, the right columns where documents are listed."""
    from luthier.checks.objectives import Plain

    once = [replace(e, query_key=i, keys=[100 * i + k for k in range(len(e.keys))]) for i, e in enumerate(searches())]
    example = catalog.load("objectives", _NAME).example()
    objective = replace(example, group=len(once), similarity="cosine", temperature=None)
    model, found = _found(objective, "bert-embedding", once)
    plain = Plain(model)
    q = torch.stack([plain.states(e.query).mean(0) for e in once])
    d = torch.stack([plain.states(x).mean(0) for e in once for x in e.documents])
    label = torch.tensor([sum(len(e.documents) for e in once[:i]) for i in range(len(once))])
    scores = F.cosine_similarity(q[:, None], d[None], dim=-1) / 0.05  # (Q, D)
    close(found, F.cross_entropy(scores, label, reduction="sum"), "loss and torch's cross-entropy")
