"""Rollouts: answers that the tuned model writes to the prompts of a round, judged, as examples to train on.

    y_k ~ pi_now(. | x),  k = 1..K        K answers to each prompt x, up to and with the first end token
    s_k = reward(x, y_k)                  less `missing_eos_penalty` where y_k was cut off; with `standardise`, a column, less
                                          the mean and over the standard deviation of all rewards so far, this round's
                                          among them, of rows with the same value: rewards of different scales then mix
    old, ref                              log pi_now and log pi_ref (N,) of their tokens; layers that stand still are held
                                          and run once for both (`core/trunk.py`)

A round is the prompts of `steps` optimiser steps, each visited `passes` times (`Plan.of_round`); it begins with new answers
of the model as it is then. What an answer or a token was worth is the objective's to say (`credit`).

Answers depend on seed, round, prompt and weights alone. A round that was begun is part of a checkpoint, so a resumed run
trains on the very answers that the interrupted one would have. Every process writes all of them: they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.core.batch import Batch, Example, GroupExample, TextExample
from luthier.core.config import RolloutSettings
from luthier.core.logprobs import Scorer
from luthier.core.method import Decoder, Generation, LuthierError, OnlineObjective
from luthier.core.subject import Subject, at_rest, cut_at, window_of
from luthier.core.trunk import Trunk

Reward = Callable[[Sequence[dict[str, Any]], Sequence[str]], Sequence[float]]
"""Rows of the data and one answer to each, as text, to one number each."""


class Rollouts:
    """The answers of one run.

    decoder  how tokens are drawn: from the model's own distribution, for the objective's ratios to be right
    begun    first step of the round that has answers; -1: none has
    memory   what the objective carries on from round to round
    seen     number, sum and sum of squares of all rewards so far, by the value of the column that they are standardised by
    trunk    what the tuned model and the copy that says `ref` have in common; None: nothing
    """

    def __init__(self, settings: RolloutSettings, decoder: Decoder, tokenizer: Any, reward: Reward):
        self.settings, self.decoder, self.tokenizer, self.reward = settings, decoder, tokenizer, reward
        self.prompts: list[TextExample] = []
        self.answered: dict[int, GroupExample] = {}
        self.memory: dict[str, float] = {}
        self.seen: dict[str, tuple[float, ...]] = {}
        self.trunk: Trunk | None = None
        self.begun = -1

    def open(self, prompts: Sequence[Example], objective: OnlineObjective, model: nn.Module) -> list[Example]:
        """An example for every prompt as long as an answered one can be, to plan and to measure by. Raises LuthierError."""
        if any(type(e) is not TextExample or "row" not in e.extras for e in prompts):
            raise LuthierError(f"objective '{objective.name}' takes prompts: say data.type: prompts")
        if getattr(model.config, "is_encoder_decoder", False):
            raise LuthierError(f"objective '{objective.name}' takes decoder models, not an encoder-decoder")
        self.prompts = list(prompts)  # type: ignore[arg-type]
        window, most = window_of(model), self.settings.max_new_tokens
        longest = max(len(e) for e in prompts)
        if window is not None and longest + most > window:
            raise LuthierError(
                f"rollouts.max_new_tokens {most} and a prompt of {longest} tokens exceed the window of {window}: lower "
                "max_new_tokens or data.max_length"
            )
        K = self.settings.answers
        blank = torch.zeros(K * most)
        columns = {"old": blank, "ref": blank, "value": blank}
        shown = [GroupExample(e.row, e.ids, [e.ids[-1:] * most] * K, [0.0] * K, extras=columns) for e in self.prompts]
        return list(objective.credit(shown, {}))

    def begin(
        self, step: int, chunks: Sequence[Sequence[int]], objective: OnlineObjective, scorer: Scorer,
        collate: Callable[[Sequence[Example]], Batch], autocast: Callable[[], AbstractContextManager[Any]],
        seed: Sequence[int],
    ) -> dict[str, float]:  # fmt: skip
        """New answers to the prompts of the round that begins at `step`, in `chunks` (micro-batches) as they will be
        trained on, so that nothing but the weights tells `old` from what is asked later. Figures of the round."""
        rows = [i for chunk in chunks for i in chunk]
        answered: list[GroupExample] = []
        with autocast():
            said = self._written(scorer.plain, rows, int(np.random.default_rng([*seed, step, 2]).integers(2**31)))
            judged = dict(zip(rows, self._judged(rows, said), strict=True))
            for chunk in chunks:
                examples = [judged[i] for i in chunk]
                answered += self._recalled(examples, collate(examples).to(scorer.device), objective, scorer)
        self.answered = dict(zip(rows, objective.credit(answered, self.memory), strict=True))
        self.begun = step
        ended = sum(g.stopped for g in said) / len(said)
        return {**self._figures(answered), "completions/clipped_ratio": 1 - ended, **self.memory}

    def _written(self, model: nn.Module, rows: Sequence[int], seed: int) -> list[Generation]:
        """The answers to each row's prompt, one row's after another's."""
        subject = Subject(model, self.tokenizer, decoder=self.decoder)
        asked = [self.prompts[i].ids for i in rows for _ in range(self.settings.answers)]
        return subject.generations(asked, self.settings.max_new_tokens, self.settings.stop, seed, with_end=True)

    def _judged(self, rows: Sequence[int], said: Sequence[Generation]) -> list[GroupExample]:
        K = self.settings.answers
        told = [self.prompts[i].extras["row"] for i in rows for _ in range(K)]
        texts = [cut_at(self.tokenizer.decode(g.ids, skip_special_tokens=True), self.settings.stop) for g in said]
        scores = [float(s) for s in self.reward(told, texts)]
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            odd = next((s for s in scores if not math.isfinite(s)), None)
            what = f"{len(scores)} numbers for {len(texts)} answers" if odd is None else f"{odd} for an answer"
            raise LuthierError(f"rollouts.reward gave {what}: it must give one finite number for each")
        scores = [s if g.stopped else s - self.settings.missing_eos_penalty for s, g in zip(scores, said, strict=True)]
        if (column := self.settings.standardise) is not None:
            if missing := next((row for row in told if column not in row), None):
                raise LuthierError(f"rollouts.standardise: no column '{column}' in a row, only {', '.join(missing)}")
            scores = self._standardised(scores, [str(row[column]) for row in told])
        return [
            GroupExample(
                self.prompts[i].row, self.prompts[i].ids, [g.ids for g in said[at : at + K]], scores[at : at + K]
            )
            for i, at in zip(rows, range(0, len(said), K), strict=True)
        ]

    def _standardised(self, scores: Sequence[float], kinds: Sequence[str]) -> list[float]:
        """By kind; sums of this and earlier rounds are in `seen`."""
        for kind in dict.fromkeys(kinds):
            mine = [s for s, k in zip(scores, kinds, strict=True) if k == kind]
            before = self.seen.get(kind, (0.0, 0.0, 0.0))
            new = (float(len(mine)), math.fsum(mine), math.fsum(s * s for s in mine))
            self.seen[kind] = tuple(a + b for a, b in zip(before, new, strict=True))
        out = []
        for s, kind in zip(scores, kinds, strict=True):
            n, total, squares = self.seen[kind]
            spread = math.sqrt(max(squares / n - (total / n) ** 2, 0.0))
            out.append((s - total / n) / (spread + 1e-8))
        return out

    def _recalled(
        self, examples: Sequence[GroupExample], batch: Batch, objective: OnlineObjective, scorer: Scorer
    ) -> list[GroupExample]:
        """The examples with what writer and reference say about their tokens."""
        with nullcontext() if self.trunk is None else self.trunk.once():
            with at_rest(scorer.model):
                columns = objective.recall(scorer, batch)
            if objective.reference:
                with scorer.untuned() as untuned:
                    columns = {**columns, "ref": untuned.token_logp(batch)}
        sizes = [sum(map(len, e.answers)) for e in examples]
        parts = {name: column.float().cpu().split(sizes) for name, column in columns.items()}
        return [replace(e, extras={n: p[k] for n, p in parts.items()}) for k, e in enumerate(examples)]

    def _figures(self, answered: Sequence[GroupExample]) -> dict[str, float]:
        """Under trl's names; `kl` is that of an answer, in nats; `distinct_2` the share of different ones among all pairs of
        neighbouring tokens."""
        scores = torch.tensor([s for e in answered for s in e.scores or []], dtype=torch.float64)
        tokens = sum(len(a) for e in answered for a in e.answers)
        found = {"reward": float(scores.mean()), "completions/mean_length": tokens / len(scores)}
        if len(scores) > 1:
            found["reward_std"] = float(scores.std())
        two = [pair for e in answered for a in e.answers for pair in pairwise(a)]
        if two:
            found["completions/distinct_2"] = len(set(two)) / len(two)
        if "ref" in answered[0].extras:
            found["kl"] = sum(float((e.extras["old"] - e.extras["ref"]).double().sum()) for e in answered) / len(scores)
        return found

    # state --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        told = {i: {"answers": e.answers, "scores": e.scores, "extras": e.extras} for i, e in self.answered.items()}
        return {"begun": self.begun, "memory": self.memory, "seen": self.seen, "answered": told}

    def load(self, state: dict[str, Any]) -> None:
        self.begun, self.memory, self.seen = state["begun"], state["memory"], state["seen"]
        self.answered = {
            i: GroupExample(self.prompts[i].row, self.prompts[i].ids, **told) for i, told in state["answered"].items()
        }
