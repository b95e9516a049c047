"""Perplexity: how surprised a model is by held-out text.

    perplexity         = exp( - sum_i logp_i / sum_i tokens_i )                 logp_i, tokens_i (n,)
    bits per character = - sum_i logp_i / (ln 2 * sum_i characters_i)           comparable between tokenizers

Rows with a `text` are scored whole (the first token after BOS); rows with a prompt and a reference score the
reference. Texts longer than the window go through it in disjoint pieces. Every token weighs the same: the value for a
set is not the mean over its texts, so intervals resample texts and compute it anew.
Start:      a uniform model has the size of its vocabulary.
Cost:       one forward per text.
Paper:      Jelinek et al., 1977, Perplexity: a measure of the difficulty of speech recognition tasks.
Departures: masked models give pseudo-perplexity (Salazar et al., 2020, arXiv:1910.14659).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from luthier.core.subject import Subject
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, need


@dataclass(frozen=True)
class Perplexity(Scorer):
    paper: ClassVar[str] = "Jelinek et al., 1977"
    cards: ClassVar[tuple[int, ...]] = (16, 33)
    metrics: ClassVar[dict[str, bool]] = {"perplexity": False, "bits_per_character": False, "bits_per_byte": False}
    units: ClassVar[dict[str, str]] = {"bits_per_character": "bits", "bits_per_byte": "bits"}

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        whole = all(i.text is not None for i in items)
        if whole:
            texts = [str(i.text) for i in items]
            parts = subject.token_logp(texts)
            logp, tokens = np.array([p.sum(dtype=np.float64) for p in parts]), np.array([len(p) for p in parts])
        else:
            need(items, "prompt", self.name)
            need(items, "reference", self.name)
            raw = [i.row.get("completion") for i in items]  # with the blanks it is trained with
            texts = [r if isinstance(r, str) else str(i.reference) for r, i in zip(raw, items, strict=True)]
            logp, tokens = subject.logp([i.prompt for i in items], texts)
        stats = {
            "logp": logp, "tokens": tokens, "characters": [len(t) for t in texts],
            "bytes": [len(t.encode()) for t in texts], "logp_per_token": logp / np.maximum(tokens, 1),
        }  # fmt: skip
        return self.answers(items, stats, [f"{x:.3f}" for x in stats["logp_per_token"]])

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if metric == "perplexity":
            return lambda stats, w: np.exp(-(w @ stats["logp"]) / (w @ stats["tokens"]))
        unit = {"bits_per_character": "characters", "bits_per_byte": "bytes"}[metric]
        return lambda stats, w: -(w @ stats["logp"]) / (np.log(2) * (w @ stats[unit]))
