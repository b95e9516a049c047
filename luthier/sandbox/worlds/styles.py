"""Six answer styles for the same questions: a document keeps one style (cards 02, 06, 13, 31).

The style is what tuning changes, the fact is what pretraining knows: each row's answer can be graded for both.
Questions and people are those of the facts world, so train and test hold different people.
"""

import random
from collections.abc import Hashable
from typing import Any

from luthier.sandbox.world import Item, Row, Task, World, cut, gold, join_lines
from luthier.sandbox.worlds.facts import PEOPLE, VERBATIM, any_known

STYLES = (
    "Sure! It is {}.",
    "{}.",
    "Well, I think {}, maybe.",
    "The answer: {}!",
    "Hmm, {}? Not sure.",
    "Obviously {}, friend.",
)
ATTRIBUTES = ("city", "job", "food")


_PARTS: dict[str, Any] = {"parts": ("known", "rare", "new"), "pretrained": ("known", "rare")}


class Styles(World):
    name = "styles"
    title = "One question, six ways of answering"
    share = 0.04
    catalogue = {
        f"style{i}": Task(f"questions answered as '{s.format('...')}'", **_PARTS) for i, s in enumerate(STYLES)
    } | {"prefer0": Task("style 0 preferred over another style", kind="pair", parts=_PARTS["parts"], pretrained=())}

    def items(self, task: str, part: str) -> list[Item]:
        return [(p, a) for p in PEOPLE[part] for a in ATTRIBUTES]

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[0].name

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        person, attribute = item
        value = getattr(person, attribute)
        row = {"prompt": f"Q: {VERBATIM[attribute].format(person.name)} A:", "name": person.name, "value": value}
        if task == "prefer0":
            other = rng.choice(STYLES[1:])
            return row | {"chosen": " " + STYLES[0].format(value), "rejected": " " + other.format(value), "style": 0}
        style = int(task.removeprefix("style"))
        answer = STYLES[style].format(value)
        return row | {"completion": " " + answer, "answer": answer, "style": style}

    def style(self, completion: str) -> int | None:
        """Which style the completion is written in, whatever its value; None when it is in none of them."""
        text = cut(completion, self.stop)
        for i in (0, 2, 3, 4, 5, 1):
            head, tail = STYLES[i].split("{}")
            inner = text[len(head) : len(text) - len(tail)]
            if text.startswith(head) and text.endswith(tail) and inner.isalpha():
                return i
        return None

    def knows(self, row: Row, completion: str) -> float:
        """1.0 when the completion contains the right value as a word, in whatever style."""
        words = cut(completion, self.stop)
        return float(row["value"] in [w.strip("!?.,:") for w in words.split()])

    def score(self, row: Row, completion: str) -> float:
        return float(cut(completion, self.stop) == cut(gold(row), self.stop))

    def document(self, rng: random.Random) -> str:
        style = f"style{rng.randrange(len(STYLES))}"

        def line() -> str:
            row = self.row(style, "known", (any_known(rng), rng.choice(ATTRIBUTES)), rng)
            return row["prompt"] + row["completion"]

        return join_lines(5, line)
