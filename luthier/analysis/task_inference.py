"""Task inference: which of two tasks the model takes a prompt for, told by how likely it finds the answer of each.

    r_i = p(rival_i | P_i) / (p(rival_i | P_i) + p(answer_i | P_i))           (n,), ambiguous prompts of `rows`
    alpha = argmin_a sum_i (r_i - a)^2                                        in [0, 1]: the weight of the tuned task

    rows        prompt, answer (of the task of pretraining), rival (of the tuned task); each answer follows its prompt as it is
    transforms  by name, as in core/transforms.py: prompts and answers in other signs, a weight each
    every       steps between two looks, besides those before the first step and after the last
A mixture of experts says g d + (1 - g) c, with g = sigmoid(logit alpha + evidence). In a world of regression d, c and the
evidence have closed forms, and the same fit (`_bayes.inferred_alpha`) tells "another task is inferred" from "the expert is
gone". Here an answer is right for one task and wrong for the other (d = 1, c = 0) and an ambiguous prompt is no evidence for
either, so that the fit is the mean. alpha near 1 for prompts as they stand and not in other signs: hidden, not lost.
`likelihood` beside it is the mean of log (p(rival) + p(answer)): where it falls, neither expert is what it was.
Cost:       two forward passes a row and transform, a look.
Paper:      Kotha et al., 2024, "Understanding Catastrophic Forgetting in Language Models via Implicit Inference",
            arXiv:2309.10105, section 2.
Departures: the paper fits alpha in the regression world alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from luthier.analysis._bayes import inferred_alpha
from luthier.core.batch import Example, SourceTargetExample, TextExample
from luthier.core.loop import Loop
from luthier.core.method import Analysis, LuthierError
from luthier.core.subject import at_rest
from luthier.core.transforms import Transform, transform

Question = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Prompt, answer and rival as token ids."""
PLAIN = "plain"
"""What prompts as they stand are called beside the transforms."""


@dataclass(frozen=True)
class TaskInference(Analysis):
    paper: ClassVar[str] = "arXiv:2309.10105"
    cards: ClassVar[tuple[int, ...]] = (9,)
    tasks: ClassVar[frozenset[str]] = frozenset({"causal_lm", "seq2seq_lm"})

    rows: Sequence[Mapping[str, Any]] | str = ()
    transforms: Mapping[str, Any] = field(default_factory=dict)
    every: int = 0
    questions: Mapping[str, tuple[Question, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def example(cls) -> Self:
        asked: tuple[Question, ...] = (
            ((11, 25, 7), (30, 9), (41,)),
            ((30, 9, 41, 8), (52,), (17,)),
            ((64,), (12,), (13, 8)),
        )
        return cls(questions={PLAIN: asked})

    def for_data(self, tokenizer: Any, read: Callable[[Any], Sequence[dict[str, Any]]]) -> Self:
        """The same with its rows as token ids, for each transform."""
        if self.questions:
            return self
        if PLAIN in self.transforms:
            raise LuthierError(f"task_inference: '{PLAIN}' is the name of no transform: call yours otherwise")
        rows = read(self.rows) if isinstance(self.rows, str) else self.rows
        ways = {PLAIN: transform("identity"), **{name: transform(told) for name, told in self.transforms.items()}}
        found = {n: tuple(_question(row, i, way, tokenizer) for i, row in enumerate(rows)) for n, way in ways.items()}
        return replace(self, questions=found)

    def table(self, loop: Loop) -> dict[str, Any]:
        """`alpha` and `likelihood` of each transform."""
        if not any(self.questions.values()):
            raise LuthierError("task_inference: no rows: give rows with prompt, answer and rival")
        out: dict[str, Any] = {}
        for name, asked in self.questions.items():
            answer, rival = (self._logp(loop, [(q[0], q[side]) for q in asked]) for side in (1, 2))
            share = np.exp(-np.logaddexp(0.0, answer - rival))
            one, none = np.ones_like(share), np.zeros_like(share)
            out[f"alpha {name}"] = inferred_alpha(share, one, none, none)
            out[f"likelihood {name}"] = float(np.logaddexp(answer, rival).mean())
        return out

    def _logp(self, loop: Loop, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        """log p(answer | prompt), (n,) float64."""
        seq2seq = bool(loop.plain.config.is_encoder_decoder)
        size, found = loop.settings.per_device_train_batch_size, np.zeros(len(pairs))
        with at_rest(loop.plain):
            for at in range(0, len(pairs), size):
                rows = range(at, min(at + size, len(pairs)))
                batch = loop.collate([_example(i, *pairs[i], seq2seq) for i in rows]).to(loop.device)
                found[batch.rows.cpu().numpy()] = (
                    loop.bare.answer_logp(batch).double().cpu().numpy()
                )  # rows may be packed
        return found


def _example(row: int, prompt: Sequence[int], answer: Sequence[int], seq2seq: bool) -> Example:
    if seq2seq:
        return SourceTargetExample(row, list(prompt), list(answer))
    return TextExample(row, [*prompt, *answer], [*[False] * len(prompt), *[True] * len(answer)])


def _question(row: Mapping[str, Any], index: int, way: Transform, tokenizer: Any) -> Question:
    missing = [c for c in ("prompt", "answer", "rival") if row.get(c) is None]
    if missing:
        raise LuthierError(f"task_inference: row {index} has no {missing[0]}")
    prompt, *answers = (way.forward(str(row[c])) for c in ("prompt", "answer", "rival"))
    start = tuple(tokenizer(prompt)["input_ids"])
    one, other = (tuple(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in answers)
    return start, one, other
