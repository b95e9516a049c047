"""Response ranking: whether a model finds the true response to an instruction likelier than responses to others.

    s(y | x) = exp(sum_t log p(y_t | x, y_<t) / |y|)          the score of a response: one over its perplexity
    wins     = share of j in 1..r with s(y | x) > s(y_j | x)    y_j responses to other instructions, drawn at random
    margin   = mean of log s(y | x) - log s(y_j | x)

    responses  r, how many others an item's response is compared with;  seed  of the draw
    delimiter  stands between prompt and response, unless the prompt is a list of messages
Which others are drawn depends on the seed, the item and the set of responses, not on the order of the items. Responses equal
to the true one are not drawn.
Ties:       count as wrong.
Chance:     0.5 for a model to which the instruction says nothing.
Cost:       r + 1 forwards an item; a response drawn for several items is read anew for each.
Paper:      Hewitt et al., 2024, "Instruction Following without Instruction Tuning", arXiv:2409.14254, section 3 (response
            ranking).
Departures: responses are scored as the rows have them, without an end token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, need


@dataclass(frozen=True)
class ResponseRanking(Scorer):
    paper: ClassVar[str] = "arXiv:2409.14254"
    cards: ClassVar[tuple[int, ...]] = (31,)
    metrics: ClassVar[dict[str, bool]] = {"wins": True, "margin": True}
    units: ClassVar[dict[str, str]] = {"margin": "nats"}
    sample: ClassVar[str] = "wins"
    responses: int = 5
    seed: int = 0
    delimiter: str = ""

    def __post_init__(self) -> None:
        if self.responses < 1:
            raise LuthierError(f"response_ranking: responses is {self.responses}: give 1 or more to compare with")

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        need(items, "reference", self.name)
        told = [[str(item.reference), *others] for item, others in zip(items, self.drawn(items), strict=True)]
        pairs = [(item.prompt, text) for item, texts in zip(items, told, strict=True) for text in texts]
        logp, tokens = subject.logp([p for p, _ in pairs], [self._after(p) + text for p, text in pairs])
        ends = np.cumsum([len(texts) for texts in told])[:-1]
        scores = np.split(logp / np.maximum(1, tokens), ends)
        stats = {
            "wins": [float((s[0] > s[1:]).mean()) for s in scores],
            "margin": [float((s[0] - s[1:]).mean()) for s in scores],
        }
        said = [texts[int(s.argmax())] for s, texts in zip(scores, told, strict=True)]
        return self.answers(items, stats, said, floors={"chance": 0.5})

    def drawn(self, items: Sequence[Item]) -> list[list[str]]:
        """Responses to other instructions for each item, each as often as items have it."""
        pool = sorted(str(item.reference) for item in items)
        if len(set(pool)) < 2:
            raise LuthierError("response_ranking: all rows have the same response: there is nothing to compare it with")
        out = []
        for item in items:
            others = [text for text in pool if text != item.reference]
            out.append(random.Random(f"{self.seed}/{item.id}").sample(others, min(self.responses, len(others))))
        return out

    def _after(self, prompt: object) -> str:
        return self.delimiter if isinstance(prompt, str) else ""
