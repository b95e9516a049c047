"""The contract of a world: documents for pretraining, rows for tuning and evaluation, and an exact checker.

    item     what a row is about, hashable; finite tasks list their items, the others draw them
    part     which population the item comes from: seen in pretraining or not, as each task states
    split    train or test, decided by a hash of the item's split key: the same item is never in both

Documents of procedural worlds use items of the train split only, so a test item was never seen in pretraining either.
No world imports torch; all randomness is `random.Random` with a stated seed.
"""

import difflib
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Row = dict[str, Any]
Item = tuple[Any, ...]  # hashable


def nearest(kind: str, name: str, known: Sequence[str]) -> str:
    """One line for an unknown name: the nearest valid one, and all of them."""
    close = difflib.get_close_matches(name, known, 1, 0.0)
    return (
        f"unknown {kind} '{name}'; nearest: '{close[0]}'; valid: {', '.join(known)}"
        if close
        else f"unknown {kind} '{name}'"
    )


def is_test(key: Hashable) -> bool:
    """One key in five is a test key, by a hash that does not depend on the process."""
    return zlib.crc32(repr(key).encode()) % 5 == 0


def cut(text: str, stop: str) -> str:
    """The answer inside a raw completion: up to the first end mark or stop string that follows some text."""
    text = text.split("<|end|>")[0].lstrip(" ")
    head = len(text) - len(text.lstrip("\n"))
    end = text.find(stop, head)
    return text[: end if end >= 0 else len(text)].strip()


@dataclass(frozen=True)
class Task:
    """What a task is, which row type it gives, and which of its parts are in pretraining."""

    line: str
    kind: str = "prompt"  # what of its columns `describe` names
    parts: tuple[str, ...] = ("known",)
    pretrained: tuple[str, ...] = ("known",)

    def describe(self) -> str:
        fields = {
            "prompt": "prompt, completion, answer",
            "label": "text, label",
            "pair": "prompt, chosen, rejected",
            "text": "text",
            "messages": "messages",
            "search": "query, positive, relevant",
            "tags": "tokens, ner_tags",
            "steps": "prompt, completions, labels",
            "exam": "question, answers, correct_answer, comment",
        }[self.kind]
        inside = ", ".join(f"{p} {'in' if p in self.pretrained else 'not in'} pretraining" for p in self.parts)
        return f"{self.line} [{fields}; {inside}]"


class World(ABC):
    """A generator, a checker and a stated share of the pretraining documents."""

    name: ClassVar[str]
    title: ClassVar[str]
    share: ClassVar[float]  # share of the pretraining documents; all worlds sum to 1
    stop: ClassVar[str] = "\n"  # what follows a completion inside a document
    catalogue: ClassVar[dict[str, Task]]

    @abstractmethod
    def document(self, rng: random.Random) -> str:
        """One pretraining document, plain text (chat documents carry the role tokens as text)."""

    @abstractmethod
    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        """The row of one item; `rng` serves what the item leaves open, such as the false value of a yes-no question."""

    def items(self, task: str, part: str) -> list[Item] | None:
        """All items of a finite task, or None when items are drawn."""
        return None

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        """One random item of a task whose items are not listed."""
        raise NotImplementedError(f"{self.name}/{task} lists its items")

    def split_key(self, task: str, item: Item) -> Hashable:
        """What decides the split: by default the item itself, in every task alike."""
        return item

    def tasks(self) -> dict[str, str]:
        """Task name to one line: what it is, its row type, and what of it is in pretraining."""
        return {name: task.describe() for name, task in self.catalogue.items()}

    def rows(self, task: str = "", part: str = "", split: str = "train", n: int = 1000, seed: int = 0) -> list[Row]:
        """`n` distinct rows; smaller `n` gives the beginning of the same list. Default: first task, its first part."""
        task = task or next(iter(self.catalogue))
        if task not in self.catalogue:
            raise ValueError(nearest(f"task of world {self.name}", task, list(self.catalogue)))
        part = part or self.catalogue[task].parts[0]
        if part not in self.catalogue[task].parts:
            raise ValueError(nearest(f"part of {self.name}/{task}", part, self.catalogue[task].parts))
        if split not in ("train", "test"):
            raise ValueError(nearest("split", split, ("train", "test")))
        found = self._finite(task, part, split, seed) if self.items(task, part) is not None else None
        if found is None:
            found = self._drawn(task, part, split, n, seed)
        if n > len(found):
            raise ValueError(
                f"{self.name}/{task}, part {part}, split {split} has {len(found)} rows; {n} were asked for"
            )
        return [self._finish(task, part, split, item, seed) for item in found[:n]]

    def _finite(self, task: str, part: str, split: str, seed: int) -> list[Item]:
        items = [i for i in self.items(task, part) or [] if is_test(self.split_key(task, i)) == (split == "test")]
        random.Random(f"{self.name}/{task}/{part}/{split}/{seed}").shuffle(items)
        return items

    def _drawn(self, task: str, part: str, split: str, n: int, seed: int) -> list[Item]:
        rng = random.Random(f"{self.name}/{task}/{part}/{split}/{seed}")
        found: dict[Item, None] = {}
        since_new = 0
        while len(found) < n and since_new < 5000:
            item = self.draw(task, part, rng)
            new = item not in found and is_test(self.split_key(task, item)) == (split == "test")
            since_new = 0 if new else since_new + 1
            if new:
                found[item] = None
        return list(found)

    def _finish(self, task: str, part: str, split: str, item: Item, seed: int) -> Row:
        row = self.row(task, part, item, random.Random(f"{seed}/{item!r}"))
        common = {"id": self.row_id(task, part, item), "world": self.name, "task": task, "part": part}
        return common | {"split": split} | row

    def row_id(self, task: str, part: str, item: Item) -> str:
        """What the row of an item is called, whatever else is in the row."""
        return f"{self.name}/{task}/{part}/{zlib.crc32(repr(item).encode()):08x}"

    def draw_train(self, task: str, part: str, rng: random.Random) -> Item:
        """A random item of the train split: what documents of procedural worlds are made of."""
        while True:
            item = self.draw(task, part, rng)
            if not is_test(self.split_key(task, item)):
                return item

    def score(self, row: Row, completion: str) -> float:
        """1.0 when the completion, up to its stop, is exactly the answer; worlds with freer answers override this."""
        return float(cut(completion, self.stop) == cut(gold(row), self.stop))


def gold(row: Row) -> str:
    """The right completion of a row of any type."""
    if "completion" in row:
        return row["completion"]
    if "chosen" in row:
        return row["chosen"]
    if "label" in row:
        return str(row["label"])
    if "ner_tags" in row:
        return " ".join(row["ner_tags"])
    if "completions" in row:
        return " ".join("right" if label else "wrong" for label in row["labels"])
    if "messages" in row:
        return row["messages"][-1]["content"]
    if "correct_answer" in row:
        return ";".join(row["correct_answer"])
    return row["positive"] if "positive" in row else row["text"]


def join_lines(count: int, line: Callable[[], str]) -> str:
    """Several rows in one document, one per line."""
    return "\n".join(line() for _ in range(count)) + "\n"


def chat(*turns: tuple[str, str]) -> str:
    """Messages as the chat template of the sandbox tokenizer renders them."""
    return "".join(f"<|{role}|>{text}" + ("<|end|>" if role == "assistant" else "") for role, text in turns)


def weighted(rng: random.Random, weights: dict[str, float]) -> str:
    """One key, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def documents(shares: dict[str, "World"], seed: int, start: int = 0) -> Iterator[tuple[int, "World"]]:
    """Endless (number, world) pairs, each world by its share, from document `start` on."""
    names, weights = list(shares), [w.share for w in shares.values()]
    number = start
    while True:
        yield number, shares[random.Random(f"{seed}/world/{number}").choices(names, weights)[0]]
        number += 1
