"""Sequence tasks over twelve symbols, announced by a task word or to be inferred from examples (cards 04, 05, 19, 42,
52, 53, 57, 61, 62, 66).

    named      `reverse: c a d b -> b d a c`
    neutral    the same with a token that says nothing: the task must come from examples, a prompt or tuning
    fewshot    three neutral examples, then a neutral question

Twelve tasks are in pretraining; six others never are (their words are in the tokenizer's vocabulary). `recall` is
associative recall over pairs drawn afresh each time, `echo` repeats words of all worlds: both teach a small model to
look things up in its context. `table` is one of eight fixed functions shown by examples. Documents use inputs of the
train split only.
"""

import random
from collections.abc import Callable, Hashable

from luthier.sandbox.lexicon import EVERYTHING, LETTERS
from luthier.sandbox.world import Item, Row, Task, World, is_test, join_lines

NEUTRAL = "<|any|>"
SIZE = len(LETTERS)


def _shift(symbols: list[str], by: int) -> list[str]:
    return [LETTERS[(LETTERS.index(s) + by) % SIZE] for s in symbols]


def _swap(x: list[str]) -> list[str]:
    return [x[i ^ 1] if i ^ 1 < len(x) else x[i] for i in range(len(x))]


def _interleave(x: list[str]) -> list[str]:
    half = (len(x) + 1) // 2
    return [s for pair in zip(x[:half], [*x[half:], ""], strict=False) for s in pair if s]


PRETRAINED: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "sort": sorted,
    "shift": lambda x: _shift(x, 1),
    "rotate": lambda x: x[1:] + x[:1],
    "swap": _swap,
    "first": lambda x: x[:1],
    "last": lambda x: x[-1:],
    "dedup": lambda x: list(dict.fromkeys(x)),
    "interleave": _interleave,
    "evens": lambda x: x[1::2],
    "tail": lambda x: x[1:],
}
HELD_OUT: dict[str, Callable[[list[str]], list[str]]] = {
    "mix": lambda x: [s if i % 2 else _shift([s], 5)[0] for i, s in enumerate(x)],
    "backshift": lambda x: _shift(x[::-1], 3),
    "turnshift": lambda x: _shift(x[2:] + x[:2], 7),
    "mirror": lambda x: x + x[::-1],
    "descend": lambda x: sorted(x, reverse=True),
    "ends": lambda x: x[-1:] + x[1:-1] + x[:1],
}
FUNCTIONS = PRETRAINED | HELD_OUT
TABLES = [random.Random(f"luthier table {i}").sample(LETTERS, SIZE) for i in range(8)]
_WAYS = ("named", "neutral", "fewshot")


class Sequence(World):
    name = "sequence"
    title = "Symbol sequences: a dozen tasks, named or shown by examples"
    share = 0.30
    catalogue = (
        {t: Task(f"{t} four to six symbols", parts=_WAYS, pretrained=_WAYS) for t in PRETRAINED}
        | {t: Task(f"{t}: a task held out of pretraining", parts=_WAYS, pretrained=()) for t in HELD_OUT}
        | {
            "recall": Task(
                "four pairs, then the first of one pair: its second",
                parts=("symbols", "words"),
                pretrained=("symbols", "words"),
            ),
            "echo": Task("repeat five to nine words of any world", parts=("named",), pretrained=("named",)),
            "table": Task(
                "one of eight fixed functions, shown by six pairs", parts=("fewshot",), pretrained=("fewshot",)
            ),
            "member": Task("does a symbol occur in a list: T or F", parts=("named", "neutral"), pretrained=()),
        }
    )

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        if task == "recall":
            symbols = rng.sample(LETTERS if part == "symbols" else EVERYTHING, 8)
            return (*symbols, rng.choice(symbols[::2]))
        if task == "echo":
            return tuple(rng.sample(EVERYTHING, rng.randrange(5, 10)))
        if task == "table":
            return (rng.randrange(len(TABLES)), *tuple(rng.sample(LETTERS, 7)))
        if task == "member":
            symbols = rng.sample(LETTERS, 7)
            return (*tuple(symbols[:6]), rng.choice(symbols[:6] if rng.random() < 0.5 else symbols[6:]))
        return tuple(rng.choice(LETTERS) for _ in range(rng.choice((4, 5, 6))))

    def split_key(self, task: str, item: Item) -> Hashable:
        return item

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        word = task if part == "named" else NEUTRAL
        if task == "recall":
            return _row(f"{_pairs(item)}, {item[8]}", item[item.index(item[8]) + 1])
        if task == "echo":
            words = " ".join(item)
            return _row(f"echo: {words} -> {words} ->", words)
        if task == "table":
            table = dict(zip(LETTERS, TABLES[item[0]], strict=True))
            shown = "\n".join(f"{NEUTRAL}: {x} -> {table[x]}" for x in item[1:7])
            return _row(f"{shown}\n{NEUTRAL}: {item[7]} ->", table[item[7]])
        if task == "member":
            return _row(f"{word}: {' '.join(item[:6])}; {item[6]} ->", "T" if item[6] in item[:6] else "F")
        row = _row(self._line(task, item, word, ask=True), " ".join(FUNCTIONS[task](list(item))))
        if part == "fewshot":
            row["prompt"] = self.examples(task, 3, rng) + row["prompt"]
        return row

    def score(self, row: Row, completion: str) -> float:
        """Exact, except that what follows a looked-up partner does not count: documents go on with more pairs."""
        if row["task"] == "recall":
            completion = completion.split(",")[0]
        return super().score(row, completion)

    def examples(self, task: str, shots: int, rng: random.Random) -> str:
        """Neutral examples of a task from the train split, one per line."""
        return "".join(self._line(task, self.draw_train(task, "named", rng), NEUTRAL) + "\n" for _ in range(shots))

    def _line(self, task: str, item: Item, word: str, ask: bool = False) -> str:
        question = f"{word}: {' '.join(item)} ->"
        return question if ask else f"{question} {' '.join(FUNCTIONS[task](list(item)))}"

    def document(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.34:
            names = list(PRETRAINED)

            def named() -> str:
                task = rng.choice(names)
                return self._line(task, self.draw_train(task, "named", rng), task)

            return join_lines(6, named)
        if kind < 0.62:
            return self.examples(rng.choice(list(PRETRAINED)), 7, rng)
        if kind < 0.67:
            table = dict(zip(LETTERS, rng.choice(TABLES), strict=True))
            return "".join(f"{NEUTRAL}: {x} -> {table[x]}\n" for x in rng.choices(LETTERS, k=14))
        if kind < 0.87:
            return join_lines(3, lambda: self._recall(rng))
        return join_lines(3, lambda: "echo: " + " -> ".join([" ".join(self.draw_train("echo", "named", rng))] * 3))

    def _recall(self, rng: random.Random) -> str:
        part = rng.choice(("symbols", "words"))
        item = self.draw_train("recall", part, rng)
        askable = [k for k in item[:8:2] if k == item[8] or not is_test((*item[:8], k))]
        asked = [k for _ in range(2) for k in rng.sample(askable, len(askable))]
        return _pairs(item) + "".join(f", {k} {item[item.index(k) + 1]}" for k in asked)


def _pairs(item: Item) -> str:
    return f"{NEUTRAL}: " + ", ".join(f"{x} {y}" for x, y in zip(item[:8:2], item[1:8:2], strict=True))


def _row(prompt: str, answer: str) -> Row:
    return {"prompt": prompt, "completion": f" {answer}", "answer": answer}
