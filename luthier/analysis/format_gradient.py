"""Format gradient: how much of what a step would learn is the form of the answers, and not what they say.

    cos( g, g_f )      g   gradient of the loss on n rows, g_f on the same rows with their answers dealt out anew
                       of the tensors of one kind of module together (q_proj, mlp, ...), and of all that move

    rows   n, drawn from the training rows by the run's seed
    every  steps between two looks, besides those before the first step and after the last
Near 1: right and wrong answers pull alike, only their form is learned; it falls as the form is known. Answers that are not
text (labels, numbers) are dealt out in the same way.
Cost:       two forward and backward passes over n rows a look.
Paper:      Wang et al., 2024, arXiv:2211.00635, section 3.
Departures: none known; the number of rows is not the paper's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.core.batch import Example, LabelledExample, SourceTargetExample, TextExample
from luthier.core.loop import Loop
from luthier.core.method import Analysis, LuthierError
from luthier.core.subject import at_rest


@dataclass(frozen=True)
class FormatGradient(Analysis):
    paper: ClassVar[str] = "arXiv:2211.00635"
    cards: ClassVar[tuple[int, ...]] = (57,)

    rows: int = 32
    every: int = 0

    def table(self, loop: Loop) -> dict[str, float]:
        """Cosine by kind of module, and of everything under "all"."""
        if loop.objective.reference:
            raise LuthierError(
                f"format_gradient: objective '{loop.objective.name}' compares with a reference: not supported"
            )
        rng = random.Random(f"{loop.seed}/format gradient")
        real = [loop.examples[i] for i in rng.sample(range(len(loop.examples)), min(self.rows, len(loop.examples)))]
        one, other = gradients(loop, real), gradients(loop, dealt(real, rng))
        kinds: dict[str, list[str]] = {}
        for name in one:
            kinds.setdefault(_kind(name), []).append(name)
        return {k: _cosine([one[n] for n in names], [other[n] for n in names]) for k, names in kinds.items()} | {
            "all": _cosine(list(one.values()), list(other.values()))
        }


def dealt(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """The same inputs, each with the answer of another row. Raises LuthierError for rows that have several answers."""
    order = list(range(len(examples)))
    rng.shuffle(order)
    return [_with_answer(e, examples[j]) for e, j in zip(examples, order, strict=True)]


def _with_answer(example: Example, other: Example) -> Example:
    if isinstance(example, TextExample) and isinstance(other, TextExample):
        at, there = (e.counts.index(True) if any(e.counts) else len(e) for e in (example, other))
        return replace(
            example, ids=[*example.ids[:at], *other.ids[there:]], counts=[*example.counts[:at], *other.counts[there:]]
        )
    if isinstance(example, SourceTargetExample) and isinstance(other, SourceTargetExample):
        return replace(example, target=other.target)
    if isinstance(example, LabelledExample) and isinstance(other, LabelledExample):
        return replace(example, label=other.label)
    raise LuthierError(
        "format_gradient: rows with several answers have none to deal out: use rows with one answer each"
    )


def gradients(loop: Loop, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Gradient of the mean loss by name of every tensor that moves, float32, dropout off. Leaves no trace."""
    named = {n: p for n, p in loop.plain.named_parameters() if p.requires_grad}
    scorer, size = loop.bare, loop.settings.per_device_train_batch_size
    batches = [loop.collate(examples[i : i + size]).to(loop.device) for i in range(0, len(examples), size)]
    total = sum(loop.objective.weight(b) for b in batches)
    summed: dict[str, Tensor] = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in named.items()}
    with torch.random.fork_rng(), at_rest(loop.plain), torch.enable_grad():
        for batch in batches:
            loss = loop.objective.compute(scorer, batch).sum / total
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, grad in zip(named, found, strict=True):
                if grad is not None:
                    summed[name] += grad.float()
    return summed


def _kind(name: str) -> str:
    """The module that a tensor is in, by the last part of its name that is not a number."""
    parts: list[Any] = [p for p in name.split(".")[:-1] if not p.isdigit()]
    return parts[-1] if parts else name


def _cosine(one: list[Tensor], other: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in side]).double() for side in (one, other))
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length else 0.0
