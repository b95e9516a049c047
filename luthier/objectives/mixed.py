"""Mixed: several objectives at once, each on its own rows or its own answers.

    loss = sum_k c_k (1 / W_k) sum over the rows of part k of l_k              c_k weight, l_k loss of part k
    W_k    what part k divides by (tokens, pairs, rows), counted over all training rows

A step of B of the n rows estimates it by (1 / B) sum_k c_k (n / W_k) l_k: a sum over rows. It does not depend on how the
step is split, and a step with few rows of a part does not blow them up, as dividing by the part's own rows would.

    parts  [{name: sft, weight: 1.0, answer: 0}, {name: dpo, weight: 0.1, beta: 0.1}]: an objective with its options, and
             weight  c_k, 1 where left out
             answer  of a group, the answer that a part on tokens is about (0 the chosen one); left out: all
             label   what rows call the part; its name where left out
           A row's column `objective` names its part, or several; rows without it are in all parts. Of several sources, a
           source's `template: {objective: NAME}` names that of all its rows.
    per_row  W_k / n of each part, counted by the run where left out
Start:      sum_k c_k s_k where part k starts at s_k.
Cost:       parts that ask for log-probabilities share a forward pass; one that changes its input, or smooths its labels, has
            its own.
Paper:      a weighted sum of losses, as in multi-task learning: Caruana, 1997, "Multitask Learning", Machine Learning 28.
Departures: none. All rows are of one type and all parts need the same head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Batch, Example
from luthier.core.config import build
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError, Objective

HEADS = ("causal_lm", "masked_lm")
_OWN = ("weight", "answer", "label")


class _Once(Scorer):
    """A scorer that runs a batch once for all who ask about tokens of it."""

    def __init__(self, scorer: Scorer, whole: Batch):
        self.__dict__ |= scorer.__dict__
        self.whole = whole

    @cached_property
    def found(self) -> Tensor:
        return super().token_logp(self.whole)

    def token_logp(self, batch: Batch) -> Tensor:
        return self.found[batch.extras["scored"]] if batch.ids is self.whole.ids else super().token_logp(batch)


@dataclass(frozen=True)
class Mixed(Objective):
    paper: ClassVar[str] = "Caruana, 1997, Machine Learning 28"
    cards: ClassVar[tuple[int, ...]] = (50,)
    rows: ClassVar[tuple[str, ...]] = ("preference", "chat", "text", "segments", "tokenised", "parallel")

    parts: tuple[dict[str, Any], ...] = ({"name": "sft"},)
    per_row: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(heads := {o.task for o in self.objectives}) != 1 or not heads <= set(HEADS):
            raise LuthierError(f"objective: all parts of a mixture need the same head, {' or '.join(HEADS)}")
        for label, o in zip(self.labels, self.objectives, strict=True):
            if type(o).companions is not Objective.companions:
                raise LuthierError(
                    f"objective: part '{label}' needs a mean over whole steps, which a mixture does not take"
                )
        if len({(o.reference, str(o.teacher), o.k) for o in self.objectives if o.reference}) > 1:
            raise LuthierError(
                "objective: parts of a mixture that ask other models must ask the same one for the same thing"
            )
        if len(set(self.labels)) < len(self.labels):
            raise LuthierError(f"objective: two parts are called '{self.labels[-1]}': give each a label of its own")

    @classmethod
    def example(cls) -> Self:
        first, second = (
            {"name": "sft", "answer": 0},
            {"name": "sft", "label": "all", "weight": 0.5},
        )
        return cls(parts=(first, second), per_row=(4.0, 8.0))

    @cached_property
    def objectives(self) -> tuple[Any, ...]:
        told = [{k: v for k, v in part.items() if k not in _OWN} for part in self.parts]
        return tuple(build("objectives", part, "objective.parts") for part in told)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(part.get("label", part.get("name", "")) for part in self.parts)

    @property
    def task(self) -> Any:  # type: ignore[override]
        return self.objectives[0].task

    @property
    def group(self) -> int:  # type: ignore[override]
        return math.lcm(*(o.group for o in self.objectives))

    @property
    def reference(self) -> Any:  # type: ignore[override]
        return next((o.reference for o in self.objectives if o.reference), False)

    @property
    def teacher(self) -> Any:  # type: ignore[override]
        return next((o.teacher for o in self.objectives if o.reference), None)

    @property
    def k(self) -> int:  # type: ignore[override]
        return next((o.k for o in self.objectives if o.reference), 0)

    def _with(self, objectives: Sequence[Objective]) -> Self:
        """The same with other options of the parts."""
        parts = [{**part, **asdict(o)} for part, o in zip(self.parts, objectives, strict=True)]  # type: ignore[call-overload]
        return replace(self, parts=tuple(parts))

    def for_tokenizer(self, tokenizer: Any) -> Self:
        return self._with([o.for_tokenizer(tokenizer) for o in self.objectives])

    def for_examples(self, examples: Sequence[Example]) -> Self:
        from luthier.core.loop import Collator

        out = self._with([o.for_examples(examples) for o in self.objectives])
        if out.per_row:
            return out
        totals = np.zeros(len(self.parts))
        for start in range(0, len(examples), 64):
            batch = out.view(Collator(0)(examples[start : start + 64]), 0, 1, np.random.default_rng(0))
            totals += [
                o.weight(b) if b.answers else 0.0 for o, b in zip(out.objectives, out._batches(batch), strict=True)
            ]
        for label, total in zip(self.labels, totals, strict=True):
            if not total:
                raise LuthierError(f"objective: no training row is for part '{label}'")
        return replace(out, per_row=tuple((totals / len(examples)).tolist()))

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows.unique_consecutive()))

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        key, shown = int(rng.integers(2**62)), []
        for k, (o, part) in enumerate(zip(self.objectives, self._batches(batch), strict=True)):
            own = type(o).view is not Objective.view and part.answers > 0
            if own and len(batch.rows.unique_consecutive()) < batch.answers:
                raise LuthierError(
                    f"objective: part '{self.labels[k]}' changes its input, which groups of answers share"
                )
            shown.append(o.view(part, step, total, np.random.default_rng([key, k])) if own else None)
        return replace(batch, extras={**batch.extras, "shown": shown}) if any(s is not None for s in shown) else batch

    def _batches(self, batch: Batch) -> list[Batch]:
        """What each part sees; as it is shown, where it changes its input."""
        of, counts = batch.rows.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        number = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts)[of]  # of an answer in its group
        told = batch.extras.get("objective") or [None] * len(counts)
        wanted = [self.labels if names is None else [names] if isinstance(names, str) else names for names in told]
        if unknown := {n for names in wanted for n in names} - set(self.labels):
            raise LuthierError(f"objective: a row is for '{min(unknown)}', which is no part ({', '.join(self.labels)})")
        out, shown = [], batch.extras.get("shown") or [None] * len(self.parts)
        for part, label, changed in zip(self.parts, self.labels, shown, strict=True):
            if changed is not None:
                out.append(replace(changed.to(batch.ids.device), noise=batch.noise))
                continue
            kept = torch.tensor([label in names for names in wanted], device=of.device)[of]
            if part.get("answer") is not None:
                kept = kept & (number == part["answer"])
            out.append(batch.of_answers(kept))
        return out

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        if not self.per_row:
            raise LuthierError("objective 'mixed' needs the training rows to count its parts: call for_examples first")
        once, figures, sums = _Once(scorer, batch), {}, []
        told = zip(self.parts, self.labels, self.objectives, self.per_row, self._batches(batch), strict=True)
        for part, label, objective, per_row, mine in told:
            if mine.answers == 0:
                continue
            loss = objective.compute(once, mine)
            sums.append(part.get("weight", 1.0) / per_row * loss.sum)
            figures[label] = (loss.sum.detach(), loss.weight)
            figures |= {f"{label}/{name}": figure for name, figure in loss.figures.items()}
        return Loss(torch.stack(sums).sum(), self.weight(batch), figures)
