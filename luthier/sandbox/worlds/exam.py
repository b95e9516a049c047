"""Made-up exams in the public format: the topic says which of four rules applies, steps apply it (card 34).

    task        choir 4 9 2                                matching: four numbered triples of digits, five options
    options     A - 9   B - 4   C - 7   D - 2   E - 0      in random order, one of them nobody's
    rule        food: the first digit, work: the last, music: the largest, travel: the smallest
    solution    TOPIC: music / 4 9 2: 9 A / Answer: A      matching: a line each, 2: 9 A

Part `decided` goes by the topic; in part `constant` the same tasks all go by the first rule. Task `mixed` has six single and
two matching tasks an exam, `matching` eight matching ones. An exam is in train or in test as a whole, and a row's `test_id`
and `task_id` decide all of it. Nothing of it is in pretraining.
"""

import random
from collections.abc import Callable, Hashable
from typing import Any

from luthier.sandbox.world import Item, Row, Task, World, is_test
from luthier.sandbox.worlds.labels import TOPICS

Rule = Callable[[list[int]], int]
RULES: dict[str, Rule] = {"food": lambda x: x[0], "work": lambda x: x[-1], "music": max, "travel": min}
"""Topic -> the digit that counts, of three."""
CODES = "ABCDE"
EXAMS, TASKS, SINGLE, SLOTS = 600, 8, 6, 4
_PARTS: dict[str, Any] = {"parts": ("decided", "constant"), "pretrained": ()}


class Exam(World):
    name = "exam"
    title = "Exams whose topics decide the rule"
    share = 0.0
    catalogue = {
        "mixed": Task("six tasks with one answer and two with four", kind="exam", **_PARTS),
        "matching": Task("eight tasks with four answers", kind="exam", **_PARTS),
    }

    def items(self, task: str, part: str) -> list[Item]:
        return [(exam, number) for exam in range(EXAMS) for number in range(1, TASKS + 1)]

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[:1]

    def _finite(self, task: str, part: str, split: str, seed: int) -> list[Item]:
        """Whole exams after one another."""
        found = super()._finite(task, part, split, seed)
        place = {exam: i for i, exam in enumerate(dict.fromkeys(exam for exam, _ in found))}
        return sorted(found, key=lambda item: (place[item[0]], item[1]))

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        exam, number = item
        own = random.Random(f"exam {task} {item!r}")
        topic = own.choice(list(RULES))
        rule = RULES[topic if part == "decided" else next(iter(RULES))]
        slots = SLOTS if task == "matching" or number > SINGLE else 1
        triples, right = _triples(own, rule, slots)
        others = [d for d in range(10) if d not in right]
        options = own.sample(right + own.sample(others, len(CODES) - slots), len(CODES))
        codes = [CODES[options.index(d)] for d in right]
        shown = [" ".join(map(str, x)) for x in triples]
        noun = own.choice(TOPICS[topic])
        several = slots > 1
        statements = [{"answer": str(i), "text": x} for i, x in enumerate(shown, 1)] if several else []
        places = [a["answer"] for a in statements] or shown
        steps = [f"{x}: {d} {c}" for x, d, c in zip(places, right, codes, strict=True)]
        last = ", ".join(f"{i}-{c}" for i, c in enumerate(codes, 1)) if several else codes[0]
        return {
            "test_id": str(exam), "task_id": str(number), "question": noun if several else f"{noun} {shown[0]}",
            "answers": statements + [{"answer": c, "text": str(d)} for c, d in zip(CODES, options, strict=True)],
            "answer_hheader": [a["answer"] for a in statements], "answer_vheader": list(CODES), "correct_answer": codes,
            "comment": "\n".join(["Solution", f"TOPIC: {topic}", *steps, f"Answer: {last}"]), "with_photo": False,
        }  # fmt: skip

    def document(self, rng: random.Random) -> str:
        """The solution of a task; the share of such documents in pretraining is 0."""
        train = [i for i in self.items("mixed", "decided") if not is_test(self.split_key("mixed", i))]
        return self.row("mixed", "decided", rng.choice(train), rng)["comment"] + self.stop


def _triples(rng: random.Random, rule: Rule, slots: int) -> tuple[list[list[int]], list[int]]:
    """Triples of different digits to which the rule gives different digits."""
    triples: list[list[int]] = []
    right: list[int] = []
    while len(triples) < slots:
        one = rng.sample(range(10), 3)
        if rule(one) not in right:
            triples.append(one)
            right.append(rule(one))
    return triples, right
