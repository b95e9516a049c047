"""Entity tracking: what is in which box (card 58).

    static   `Boxes: in C coin, in A rope, in F hat, in D key. in A` -> ` rope`, four boxes
    wide     the same with six boxes, never in pretraining
    moves    one object moves first: ` rope to K.`, never in pretraining

32 objects, 26 labels; a test key is a pair of queried object and label, and documents never ask for such a pair.
"""

import random
import string
from collections.abc import Hashable

from luthier.sandbox.lexicon import OBJECTS
from luthier.sandbox.world import Item, Row, Task, World, cut, is_test

LABELS = string.ascii_uppercase


class Entities(World):
    name = "entities"
    title = "Which object is in which box"
    share = 0.10
    catalogue = {
        "static": Task("four boxes, one is asked for"),
        "wide": Task("six boxes, one is asked for", pretrained=()),
        "moves": Task("four boxes, one object moves to a new box, that box is asked for", pretrained=()),
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        boxes = 6 if task == "wide" else 4
        labels = rng.sample(LABELS, boxes + 1)
        objects = rng.sample(OBJECTS, boxes)
        return (tuple(objects), tuple(labels), rng.randrange(boxes))

    def split_key(self, task: str, item: Item) -> Hashable:
        objects, labels, asked = item
        return (objects[asked], labels[-1] if task == "moves" else labels[asked])

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        objects, labels, asked = item
        label, move = labels[asked], ""
        if task == "moves":
            label, move = labels[-1], f" {objects[asked]} to {labels[-1]}."
        prompt = f"{describe(objects, labels)}{move} in {label}"
        return {"prompt": prompt, "completion": f" {objects[asked]}", "answer": objects[asked], "asked": asked}

    def score(self, row: Row, completion: str) -> float:
        """The first word is the object."""
        words = cut(completion, self.stop).split()
        return float(bool(words) and words[0].rstrip(".") == row["answer"])

    def document(self, rng: random.Random) -> str:
        text = ""
        for _ in range(2):
            objects, labels, asked = self.draw_train("static", "known", rng)
            askable = [i for i in range(4) if i == asked or not _held(self, objects, labels, i)]
            answers = "".join(
                f" in {labels[i]} {objects[i]}." for _ in range(2) for i in rng.sample(askable, len(askable))
            )
            text += describe(objects, labels) + answers + "\n"
        return text


def _held(world: Entities, objects: tuple[str, ...], labels: tuple[str, ...], asked: int) -> bool:
    return is_test(world.split_key("static", (objects, labels, asked)))


def describe(objects: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """Where everything is; a spare label at the end of `labels` is not mentioned."""
    return "Boxes: " + ", ".join(f"in {b} {o}" for o, b in zip(objects, labels, strict=False)) + "."
