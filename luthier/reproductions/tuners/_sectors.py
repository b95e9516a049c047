"""Texts with several labels at once, for the methods of card 24: sentences of the sandbox's topic world, joined.

    the king saw the soup in the market . the nurse lost the drum        food market; music

A label is a topic, or topic and place: labels share words, and some are the beginning of others. How often a label
occurs falls with its rank (Zipf). Every text has one to three different labels.
"""

from __future__ import annotations

import random
from typing import Any

from luthier.sandbox.worlds.labels import PEOPLE, PLACES, TOPICS, VERBS

LABELS = tuple(f"{topic}{place}" for place in ("", *(f" {p}" for p in PLACES)) for topic in TOPICS)
ZIPF = tuple(1 / (rank + 1) ** 0.8 for rank in range(len(LABELS)))


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Rows with `text` and `labels`."""
    rng = random.Random(f"sectors/{seed}")
    order = list(LABELS)
    random.Random("sectors").shuffle(order)  # which label is common does not follow from its name
    return [_row(rng, order) for _ in range(n)]


def _row(rng: random.Random, order: list[str]) -> dict[str, Any]:
    wanted, labels = rng.choice((1, 1, 2, 2, 3)), list[str]()
    while len(labels) < wanted:
        label = rng.choices(order, ZIPF)[0]
        if label not in labels:
            labels.append(label)
    return {"text": " . ".join(_sentence(rng, label) for label in labels), "labels": labels}


def _sentence(rng: random.Random, label: str) -> str:
    topic, _, place = label.partition(" ")
    first, second = rng.sample(TOPICS[topic], 2)
    verb = rng.choice([*VERBS, *VERBS.values()])
    where = f" in the {place}" if place else ""
    return f"the {rng.choice(PEOPLE)} {verb} the {first} and the {second}{where}"
