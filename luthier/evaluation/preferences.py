"""Preferences: whether a model finds better answers likelier than worse ones, by itself and against its base.

    accuracy         share of pairs, i better than j, with logp_i > logp_j                 sums over the answer
    accuracy_norm    the same with s = logp / tokens                                       means over the answer
    misalignment     1 - accuracy_norm: better answers that look worse to the model
    margin           mean of logp_i - logp_j
    reward_accuracy  share of pairs with gain_i > gain_j,  gain = logp - logp of the base: the reward that preference
                     tuning teaches; the base's own is 0.5
    reward_margin    mean of gain_i - gain_j, in nats; beta times it is trl's margin
    logp_best, logp_worst   mean log-probability of an item's best and worst answer: both may fall while the margin grows

Rows: prompt with chosen and rejected; or completions with scores or ranks; or choices with the right one as label. All
pairs of an item that are ordered count, and items count alike.
Ties:       count as wrong.
Cost:       one forward per answer.
Paper:      rewards: Rafailov et al., 2023, arXiv:2305.18290, section 4; misalignment: Wang et al., 2023, arXiv:2309.02144,
            "assessment misalignment".
Departures: answers are scored as the row has them, without an end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, need, right_choice


class _Remembered(NamedTuple):
    """Log-probabilities (K,) of an item's answers under the base: it may be gone when the tuned model is measured."""

    logp: Tensor


@dataclass(frozen=True)
class Preferences(Scorer):
    paper: ClassVar[str] = "arXiv:2305.18290"
    cards: ClassVar[tuple[int, ...]] = (14, 39, 68)
    metrics: ClassVar[dict[str, bool]] = {
        "accuracy": True, "accuracy_norm": True, "misalignment": False, "margin": True, "reward_accuracy": True,
        "reward_margin": True, "logp_best": True, "logp_worst": False,
    }  # fmt: skip
    units: ClassVar[dict[str, str]] = {
        "margin": "nats", "reward_margin": "nats", "logp_best": "nats", "logp_worst": "nats",
    }  # fmt: skip
    sample: ClassVar[str] = "accuracy"
    delimiter: str = ""

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        told = [_answers(item) for item in items]
        prompts = [i.prompt for i, (texts, _) in zip(items, told, strict=True) for _ in texts]
        flat, tokens = subject.logp(prompts, [self.delimiter + t for texts, _ in told for t in texts])
        ends = np.cumsum([len(texts) for texts, _ in told])[:-1]
        logp, n = np.split(flat, ends), np.split(tokens, ends)
        before: Sequence[np.ndarray | None] = [None] * len(items)
        if base is not None and base.keep is not None:
            before = [np.asarray(kept.logp) for kept in base.keep]
        rows = [
            _judge(a, a / np.maximum(1, b), np.asarray(scores), old)
            for a, b, (_, scores), old in zip(logp, n, told, before, strict=True)
        ]
        stats = {k: [r[k] for r in rows] for k in self.metrics}
        said = [texts[int(a.argmax())] for a, (texts, _) in zip(logp, told, strict=True)]
        found = self.answers(items, stats, said, keep=[_Remembered(torch.tensor(a)) for a in logp])
        found.references = [texts[int(np.argmax(scores))] for texts, scores in told]
        return found


def _judge(logp: np.ndarray, mean: np.ndarray, scores: np.ndarray, base: np.ndarray | None) -> dict[str, float]:
    i, j = np.nonzero(scores[:, None] > scores[None])
    norm = float((mean[i] > mean[j]).mean())
    gain = None if base is None else logp - base
    return {
        "accuracy": float((logp[i] > logp[j]).mean()),
        "accuracy_norm": norm,
        "misalignment": 1 - norm,
        "margin": float((logp[i] - logp[j]).mean()),
        "reward_accuracy": 0.5 if gain is None else float((gain[i] > gain[j]).mean()),
        "reward_margin": 0.0 if gain is None else float((gain[i] - gain[j]).mean()),
        "logp_best": float(logp[scores.argmax()]),
        "logp_worst": float(logp[scores.argmin()]),
    }


def _answers(item: Item) -> tuple[list[str], list[float]]:
    """Texts and scores of a row's answers."""
    row = item.row
    if row.get("chosen") is not None and row.get("rejected") is not None:
        texts, scores = [row["chosen"], row["rejected"]], [1.0, 0.0]
    elif row.get("completions") is not None and (row.get("scores") or row.get("ranks")) is not None:
        texts, told = row["completions"], row.get("scores") or [-r for r in row["ranks"]]
        scores = [float(x) for x in told]
    elif item.choices:
        texts, right = list(item.choices), right_choice(item)
        scores = [float(k == right) for k in range(len(texts))]
    else:
        raise LuthierError(
            f"preferences: row {item.id} has neither chosen and rejected nor completions with scores nor choices "
            f"(columns: {', '.join(sorted(row))})"
        )
    if len(texts) != len(scores) or len(set(scores)) < 2:
        raise LuthierError(f"preferences: row {item.id} orders no two answers ({len(texts)} answers, scores {scores})")
    return [t if isinstance(t, str) else str(t[-1]["content"]) for t in texts], scores
