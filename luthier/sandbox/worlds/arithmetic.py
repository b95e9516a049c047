"""Arithmetic with a chain of thought: running sums, multi-digit sums, running maximum (cards 12, 23, 26, 39, 64, 67).

    sum10, sum7   `sum7 3+4+2:` -> ` 3+4=0;0+2=2 so 2`; a chain is written with + or with & throughout, same meaning
    add           `add 27+58:` -> ` 7+8+0=15;2+5+1=8 so 85`, digit by digit with the carry
    max           `max 3,8,2:` -> ` 3,8=8;8,2=8 so 8`
    *_direct      `sum7 3+4 is` -> ` 0`: no chain; in pretraining for two operands only
    judged        the steps of a running sum modulo 10, of which half of the rows have a wrong one that later steps go on
                  from, and of each step whether it is right; never in pretraining

Part `short` has 2 to 4 operands (`add`: two digits), part `long` 5 to 8 (three digits), never in pretraining.
Documents use operands of the train split only. The chains are recorded by `TInt`.
"""

import random
import re
from typing import Any

from luthier.sandbox.tint import Recorder, Step
from luthier.sandbox.world import Item, Row, Task, World, cut, join_lines, weighted

MODULUS = {"sum10": 10, "sum7": 7}
GLYPHS = ("+", "&")
_PARTS: dict[str, Any] = {"parts": ("short", "long"), "pretrained": ("short",)}


class Arithmetic(World):
    name = "arithmetic"
    title = "Chains of thought for small calculations"
    share = 0.06
    catalogue = {
        "sum10": Task("running sum modulo 10, step by step", **_PARTS),
        "sum7": Task("running sum modulo 7, step by step", **_PARTS),
        "add": Task("sum of two numbers, digit by digit", **_PARTS),
        "max": Task("running maximum, step by step", **_PARTS),
        "sum10_direct": Task("sum modulo 10 without a chain; in pretraining for two operands only", **_PARTS),
        "sum7_direct": Task("sum modulo 7 without a chain; in pretraining for two operands only", **_PARTS),
        "judged": Task(
            "steps of a sum modulo 10, right or wrong", kind="steps", parts=("short", "long"), pretrained=()
        ),
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        if task == "add":
            digits = 2 if part == "short" else 3
            return tuple(rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        top = MODULUS.get(task.removesuffix("_direct"), 10)
        return tuple(rng.randrange(top) for _ in range(rng.choice((2, 3, 4) if part == "short" else (5, 6, 7, 8))))

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        if task == "judged":
            return _judged(item, rng)
        operation, _, direct = task.partition("_")
        question = f"{operation} {(',' if operation == 'max' else '+').join(map(str, item))}"
        answer, steps = solve(operation, item)
        common = {"answer": answer, "operands": list(item)}
        if direct:
            return {"prompt": f"{question} is", "completion": f" {answer}"} | common
        glyph = "," if operation == "max" else "+" if operation == "add" else rng.choice(GLYPHS)
        chain = render(steps, glyph)
        return {
            "prompt": f"{question}:",
            "completion": f" {chain} so {answer}",
            "chain": chain,
            "steps": steps,
        } | common

    def score(self, row: Row, completion: str) -> float:
        """1.0 when the final answer is right, whatever the chain; `chain_score` grades the chain as well."""
        if row["task"] == "judged":
            return super().score(row, completion)
        text = cut(completion, self.stop)
        found = re.search(r"so (\d+)$", text) if "chain" in row else re.fullmatch(r"(\d+)", text)
        return float(found is not None and found[1] == row["answer"])

    def chain_score(self, row: Row, completion: str) -> float:
        """1.0 when every step of the chain is right too, in either glyph."""
        text = cut(completion, self.stop).replace("&", "+")
        return float(text == cut(row["completion"], self.stop).replace("&", "+"))

    def document(self, rng: random.Random) -> str:
        kinds = {"sum10": 0.26, "sum7": 0.26, "add": 0.26, "max": 0.14, "sum10_direct": 0.04, "sum7_direct": 0.04}

        def line() -> str:
            task = weighted(rng, kinds)
            item = self.draw_train(task, "short", rng)
            while task.endswith("_direct") and len(item) > 2:
                item = self.draw_train(task, "short", rng)
            row = self.row(task, "short", item, rng)
            return row["prompt"] + row["completion"]

        return join_lines(4, line)


def solve(operation: str, operands: tuple[int, ...]) -> tuple[str, list[Step]]:
    """The answer and the recorded steps. In `add` a step holds the two digits and, in `op`, the incoming carry."""
    recorder = Recorder()
    if operation == "add":
        return _long_addition(operands[0], operands[1], recorder)
    first, *rest = recorder.ints(operands)
    for other in rest:
        first = first.maximum(other) if operation == "max" else first.add_modulo(other, MODULUS[operation])
    return str(int(first)), recorder.steps


def _judged(operands: tuple[int, ...], rng: random.Random) -> Row:
    """A running sum modulo 10 as single steps, and of each whether it is right."""
    wrong = rng.randrange(1, len(operands)) if rng.random() < 0.5 else 0
    total, steps = operands[0], []
    for k, operand in enumerate(operands[1:], start=1):
        shift = rng.randrange(1, 10) if k == wrong else 0
        value = (total + operand + shift) % 10
        steps.append(f" {total}+{operand}={value}")
        total = value
    labels = [k != wrong for k in range(1, len(operands))]
    return {"prompt": f"sum10 {'+'.join(map(str, operands))}:", "completions": steps, "labels": labels}


def _long_addition(a: int, b: int, recorder: Recorder) -> tuple[str, list[Step]]:
    carry, digits = 0, ""
    width = len(str(max(a, b)))
    for x, y in zip(str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], strict=True):
        total = recorder.note(f"carry{carry}", int(x), int(y), int(x) + int(y) + carry)
        carry, digits = int(total) // 10, str(int(total) % 10) + digits
    return (str(carry) if carry else "") + digits, recorder.steps


def render(steps: list[Step], glyph: str = "+") -> str:
    """Steps as text: `3+4=7;7+2=9`, with a carry `7+8+0=15;2+5+1=8`."""
    return ";".join(
        f"{s.left}{glyph}{s.right}"
        + (f"{glyph}{s.op.removeprefix('carry')}" if s.op.startswith("carry") else "")
        + f"={s.value}"
        for s in steps
    )
