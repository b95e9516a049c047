"""Preference pairs that the model itself said: answers to questions in six styles, the first style liked best, the last least.

nano-1m answers in any of the styles, so two of its own answers to a question are compared by a known reward,

    r(answer) = 1 - s / 5     in style s = 0 ... 5, whatever it tells;   0 in none of them

as in the paper's controlled sentiment. What a tune earns is the reward of its answers to questions about people whom no pair
names; what it pays is the divergence from the untuned model, and the facts that it no longer tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from luthier import sandbox
from luthier.core.batch import GroupExample
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Collator
from luthier.core.method import Objective
from luthier.core.subject import Subject
from luthier.decoding.nucleus import Nucleus
from luthier.objectives.tdpo import TDPO
from luthier.reproductions._family import Experiment, Row
from luthier.reproductions._sequence import tune
from luthier.sandbox.worlds.styles import Styles
from luthier.tuners.full import Full


def reward(text: str) -> float:
    style = Styles().style(text)
    return 0.0 if style is None else 1 - style / 5


class StylePairs(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    questions: ClassVar[int] = 490
    draws: ClassVar[int] = 8
    asked: ClassVar[int] = 114
    steps: ClassVar[int] = 150
    batch: ClassVar[int] = 16
    learning_rate: ClassVar[float] = 1e-4

    def pairs(self, model: Any, tokenizer: Any, seed: int, split: str = "train") -> list[GroupExample]:
        """Two answers each that the model gave to one question and that differ in reward, better first."""
        rows = self.rows(split, seed)
        said = self.answers(model, tokenizer, [r for r in rows for _ in range(self.draws)], seed)
        subject, out = Subject(model, tokenizer), list[GroupExample]()
        for at, row in enumerate(rows):
            told = said[at * self.draws : (at + 1) * self.draws]
            for two in zip(told[::2], told[1::2], strict=True):
                better, worse = sorted(two, key=reward, reverse=True)
                if reward(better) > reward(worse):
                    ids = [subject.encode_pair(row["prompt"], f"{t}\n") for t in (better, worse)]
                    out.append(GroupExample(len(out), list(ids[0][0]), [list(answer) for _, answer in ids], [1.0, 0.0]))
        return out

    def rows(self, split: str, seed: int) -> list[dict[str, Any]]:
        if split == "train":
            return sandbox.rows("styles", task="style0", part="known", n=self.questions, seed=seed)
        return sandbox.rows("styles", task="style0", part="rare", split="test", n=self.asked, seed=12)

    def answers(self, model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], seed: int) -> list[str]:
        subject = Subject(model, tokenizer, decoder=Nucleus(top_p=1.0), seed=seed)
        return subject.generate([r["prompt"] for r in rows], max_new_tokens=24, stop=["\n"])

    def tuned(
        self, base: Any, tokenizer: Any, objective: Objective, pairs: Sequence[GroupExample], seed: int, batch: int = 0
    ) -> Any:
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=batch or self.batch, learning_rate=self.learning_rate
        )
        return tune(base, tokenizer, Full(), pairs, settings, seed, objective=objective).model

    def said(self, model: Any, tokenizer: Any) -> Row:
        """reward of one answer a question, drawn at temperature 1; facts, the share of them with the right value;
        entropy, nats a token that the model's own distribution has along its answers."""
        rows = self.rows("test", 0)
        texts = self.answers(model, tokenizer, rows, seed=1)
        logp, tokens = Subject(model, tokenizer).logp([r["prompt"] for r in rows], [f"{t}\n" for t in texts])
        return {
            "reward": float(np.mean([reward(t) for t in texts])),
            "facts": float(np.mean([r["value"] in t for r, t in zip(rows, texts, strict=True)])),
            "entropy": float(-np.sum(logp) / np.sum(tokens)),
        }

    @torch.no_grad()
    def divergence(self, model: Any, base: Any, pairs: Sequence[GroupExample], pad: int) -> Row:
        """Sequential KL of the better and of the worse answers, and the share of pairs that the gain orders right."""
        collate, scorer = Collator(pad), Scorer(model, beside=base)
        kl: list[Tensor] = []
        right: list[Tensor] = []
        for start in range(0, len(pairs), 20):
            pair = TDPO().ask(scorer, collate(pairs[start : start + 20]))
            kl.append(torch.stack(pair.kl))
            won, lost = pair.gains
            right.append(won > lost)
        D_w, D_l = torch.cat(kl, 1).double().mean(1).tolist()
        return {"D_w": D_w, "D_l": D_l, "gap": D_l - D_w, "accuracy": float(torch.cat(right).double().mean())}
