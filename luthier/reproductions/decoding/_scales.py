"""Two sizes, tuned and not: a style that tuning teaches, facts that pretraining knows, and answers graded for both."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np

from luthier import sandbox
from luthier.core.batch import TextExample
from luthier.core.config import TrainSettings
from luthier.core.method import Decoder
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.reproductions._family import Experiment
from luthier.reproductions._sequence import tune
from luthier.sandbox.world import cut
from luthier.sandbox.worlds.facts import PEOPLE, VALUES, VERBATIM
from luthier.sandbox.worlds.styles import STYLES
from luthier.tuners.full import Full


class Scales(Experiment):
    """Both sizes are tuned on one style, on the facts of some people; asked are people that pretraining saw a third as often.

    `fact` is over all attributes, `age` over the ages alone: these are numbers with forty values, and the one attribute that
    only the large model knows well.
    """

    small: ClassVar[str] = "nano-1m"
    large: ClassVar[str] = "nano-5m"
    style: ClassVar[int] = 0
    lessons: ClassVar[int] = 300
    steps: ClassVar[int] = 100
    batch: ClassVar[int] = 16
    small_rate: ClassVar[float] = 3e-4
    large_rate: ClassVar[float] = 2e-4
    people: ClassVar[int] = 100

    def models(self) -> tuple[Any, Any, Any]:
        """Small and large, untuned, and the tokenizer of both."""
        small, tokenizer = sandbox.load(self.small)
        return small, sandbox.load(self.large)[0], tokenizer

    def tuned(self, base: Any, tokenizer: Any, style: int, rate: float, seed: int) -> Any:
        """A copy of the base after tuning on a style. The lessons of every style are about the same facts."""
        rng = random.Random(f"lessons {seed}")
        chosen = rng.sample([(p, a) for p in PEOPLE["known"] for a in VALUES], self.lessons)
        pairs = [
            Subject(base, tokenizer).encode_pair(r["prompt"], r["completion"])
            for r in (row_of(*c, style) for c in chosen)
        ]
        told = [TextExample(i, a + b, [False] * len(a) + [True] * len(b)) for i, (a, b) in enumerate(pairs)]
        settings = TrainSettings(max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=rate)
        return tune(base, tokenizer, Full(), told, settings, seed).model

    def rows(self) -> list[dict[str, Any]]:
        """Every attribute of people that are rare in pretraining and in no lesson."""
        return [row_of(p, a, self.style) for p in PEOPLE["rare"][: self.people] for a in VALUES]

    def graded(self, model: Any, tokenizer: Any, decoder: Decoder | None = None) -> dict[str, float]:
        """Share of answers in the style, with the right fact (all, and ages alone where they are asked for), and with both."""
        rows = self.rows()
        subject = Subject(model, tokenizer, decoder=decoder or Greedy())
        texts = subject.generate([r["prompt"] for r in rows], max_new_tokens=14, stop=["\n"])
        style = np.array([in_style(t, self.style) for t in texts])
        fact = np.array([knows(r, t) for r, t in zip(rows, texts, strict=True)])
        ages = np.array([r["attribute"] == "age" for r in rows])
        found = {"style": float(style.mean()), "fact": float(fact.mean()), "both": float((style & fact).mean())}
        return found | ({"age": float(fact[ages].mean())} if ages.any() else {})


def row_of(person: Any, attribute: str, style: int) -> dict[str, Any]:
    value = getattr(person, attribute)
    prompt = f"Q: {VERBATIM[attribute].format(person.name)} A:"
    return {
        "prompt": prompt, "completion": f" {STYLES[style].format(value)}\n", "attribute": attribute, "value": value,
    }  # fmt: skip


def in_style(text: str, style: int) -> bool:
    """Whether an answer is the style's template around one word."""
    head, tail = STYLES[style].split("{}")
    said = cut(text, "\n")
    inner = said[len(head) : len(said) - len(tail)]
    return said.startswith(head) and said.endswith(tail) and inner.isalnum()


def knows(row: dict[str, Any], text: str) -> bool:
    """Whether an answer holds the right value and no other of its kind, in whatever style."""
    said = {w.strip("!?.,:") for w in cut(text, "\n").split()}
    return row["value"] in said and len(said & set(VALUES[row["attribute"]])) == 1
