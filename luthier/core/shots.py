"""Examples in front of a prompt: any n of the training rows, or the nearest to what is asked.

    [example_n, separator, ..., example_1, separator, prompt]              an example is a prompt with its completion

    drawn    n training rows at random: the same in front of every prompt, and the first of n + 1 with the same seed
    nearest  by the words that they share (BM25), or by cosine in an encoder's space; the nearest stands last
Where the window is too small for all, the farthest from the prompt are left out whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.core.bm25 import Bm25
from luthier.core.method import LuthierError
from luthier.core.subject import Subject

Choose = Callable[[str], Sequence[str]]
"""What is asked to examples, the nearest first."""


def drawn(examples: Sequence[str], n: int, seed: int) -> Choose:
    """The same `n` for every question."""
    chosen = random.Random(f"{seed}/examples").sample(list(examples), len(examples))[:n]
    return lambda asked: chosen


def by_words(known: Sequence[str], examples: Sequence[str], n: int, asked_by: str) -> Choose:
    """The examples whose `known` text (one each) shares most with the question."""
    index = Bm25(known, asked_by)
    return lambda asked: [examples[i] for i in index.top(asked, n)]


def by_meaning(known: Sequence[str], examples: Sequence[str], n: int, encoder: Subject) -> Choose:
    """The examples whose `known` text has the greatest cosine with the question."""
    there = _unit(encoder.embeddings(known))  # (m, D)

    def choose(asked: str) -> Sequence[str]:
        near = there @ _unit(encoder.embeddings([asked]))[0]
        return [examples[i] for i in np.argsort(-near, kind="stable")[:n]]

    return choose


def _unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclass
class WithExamples:
    """A subject that reads examples in front of every prompt it is asked about; all else is the subject's own.

    asked   prompt -> the text that examples are chosen by, where that is not the prompt itself
    shown   prompt -> how many examples had room;  tokens  prompt -> how long the whole became
    """

    subject: Subject
    choose: Choose
    separator: str = "\n\n"
    asked: dict[str, str] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict, init=False)
    tokens: dict[str, int] = field(default_factory=dict, init=False)

    def generate(
        self, prompts: Sequence[Any], max_new_tokens: int = 64, stop: Sequence[str] = (), seed: int | None = None
    ) -> list[str]:
        return self.subject.generate(self._all(prompts, max_new_tokens), max_new_tokens, stop, seed)

    def candidates(
        self, prompts: Sequence[Any], k: int, max_new_tokens: int = 64, stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[str]]:  # fmt: skip
        return self.subject.candidates(self._all(prompts, max_new_tokens), k, max_new_tokens, stop, seed)

    def logp(self, prompts: Sequence[Any], completions: Sequence[str]) -> Any:
        longest = max((len(self.subject.encode(c, special=False)) for c in completions), default=0)
        return self.subject.logp(self._all(prompts, longest), completions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subject, name)

    def _all(self, prompts: Sequence[Any], room: int) -> list[str]:
        once = {p: self.put(p, room) for p in dict.fromkeys(map(_plain, prompts))}
        return [once[p] for p in prompts]

    def put(self, prompt: str, room: int) -> str:
        """The prompt with its examples, beside which `room` tokens of answer have to fit."""
        window, whole = self.subject.window, prompt
        n, length = 0, len(self.subject.encode(prompt))
        for example in self.choose(self.asked.get(prompt, prompt)):
            longer = f"{example}{self.separator}{whole}"
            tokens = len(self.subject.encode(longer))
            if window is not None and tokens + room > window:
                break
            whole, n, length = longer, n + 1, tokens
        self.shown[prompt], self.tokens[prompt] = n, length
        return whole


def _plain(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise LuthierError("examples are put in front of plain prompts, not of lists of messages")
    return prompt
