"""Small Python functions with a description, code and tests (cards 21, 27, 37, 50, 62, 63).

    # sort, take the first 2, sum
    def f(xs):
     xs = sorted(xs)
     xs = xs[:2]
     return sum(xs)

A program is a chain of one to three operations on a list or a number; the description names them, in one of two
wordings. Part `known` is in pretraining; part `new` uses operations that never are. A test key is a set of operation
names, so test programs are *unseen compositions*; single operations are always in train. Completions are graded by
running them on random arguments in the sandbox's own interpreter. `repair` holds buggy programs (six kinds of bug),
which pretraining never shows.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from luthier.sandbox.interpreter import Program, ProgramError
from luthier.sandbox.world import Item, Row, Task, World, cut, is_test


@dataclass(frozen=True)
class Operation:
    """One step: two wordings and its code, `{k}` being a constant; `kind` is what goes in and what comes out."""

    wordings: tuple[str, str]
    code: str
    kind: str  # "nn", "ll" or "ln": n number, l list
    low: int = 0  # range of the constant; 0, 0: none
    high: int = 0


KNOWN = {
    "add": Operation(("add {k}", "plus {k}"), "x + {k}", "nn", 1, 9),
    "subtract": Operation(("subtract {k}", "minus {k}"), "x - {k}", "nn", 1, 9),
    "multiply": Operation(("multiply by {k}", "times {k}"), "x * {k}", "nn", 2, 9),
    "square": Operation(("square", "times itself"), "x * x", "nn"),
    "modulo": Operation(("modulo {k}", "rest after dividing by {k}"), "x % {k}", "nn", 2, 9),
    "reverse": Operation(("reverse", "turn around"), "xs[::-1]", "ll"),
    "sort": Operation(("sort", "put in order"), "sorted(xs)", "ll"),
    "addall": Operation(("add {k} to each", "each plus {k}"), "[x + {k} for x in xs]", "ll", 1, 9),
    "multiplyall": Operation(("multiply each by {k}", "each times {k}"), "[x * {k} for x in xs]", "ll", 2, 9),
    "evens": Operation(("keep the even", "only the even"), "[x for x in xs if x % 2 == 0]", "ll"),
    "over": Operation(("keep those over {k}", "only those over {k}"), "[x for x in xs if x > {k}]", "ll", 1, 9),
    "take": Operation(("take the first {k}", "only the first {k}"), "xs[:{k}]", "ll", 1, 4),
    "drop": Operation(("drop the first {k}", "without the first {k}"), "xs[{k}:]", "ll", 1, 4),
    "sum": Operation(("sum", "the sum"), "sum(xs)", "ln"),
    "length": Operation(("length", "the number of them"), "len(xs)", "ln"),
}
NEW = {
    "negate": Operation(("negate", "change the sign"), "-x", "nn"),
    "half": Operation(("halve", "divide by 2"), "x // 2", "nn"),
    "skip": Operation(("every second", "skip every other"), "xs[::2]", "ll"),
    "squareall": Operation(("square each", "each times itself"), "[x * x for x in xs]", "ll"),
    "under": Operation(("keep those under {k}", "only those under {k}"), "[x for x in xs if x < {k}]", "ll", 1, 9),
    "largest": Operation(("largest", "the largest"), "max(xs[:3])", "ln"),  # of the first three
}
OPERATIONS = KNOWN | NEW
Step = tuple[str, int]  # name of the operation, its constant
BUGS = ("operator", "constant", "literal", "order", "missing", "name")


class Programs(World):
    name = "programs"
    title = "Small functions that can be run"
    share = 0.04
    stop = "\n\n"
    catalogue = {
        "write": Task("description to code", parts=("known", "new")),
        "write_tested": Task("description and three asserts to code", parts=("known", "new"), pretrained=()),
        "output": Task("a function and an argument to its value", pretrained=()),
        "repair": Task("description and buggy code to correct code", pretrained=()),
        "repair_pair": Task("correct code preferred over buggy code", kind="pair", pretrained=()),
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        table = KNOWN if part == "known" else OPERATIONS
        size = (
            rng.choice((1, 2, 2, 3, 3)) if part == "known" and not task.startswith("repair") else rng.choice((2, 2, 3))
        )
        number = rng.random() < 0.3
        while True:
            names: list[str] = []
            for place in range(size):
                last = place == size - 1
                kinds = ("nn",) if number else ("ll", "ln") if last else ("ll",)
                names.append(rng.choice([n for n, o in table.items() if o.kind in kinds]))
            if len(set(names)) != size or (part == "new" and not any(n in NEW for n in names)):
                continue
            steps = tuple((n, rng.randint(table[n].low, table[n].high)) for n in names)
            if part == "known" or _runs(steps):
                return (steps, rng.randrange(2))

    def split_key(self, task: str, item: Item) -> Hashable:
        names = sorted(name for name, _ in item[0])
        salt = 0
        while len(names) == 1 and is_test((salt, *names)):
            salt += 1
        return (salt, *names)

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        steps, wording = item
        code = source(steps)
        head = f"# {describe(steps, wording)}\n"
        signature, body = code.split("\n", 1)
        tests = [(a, run(code, a)) for a in arguments(steps)]
        common = {"code": code, "tests": tests, "operations": [name for name, _ in steps], "signature": signature}
        if task == "output":
            argument, value = tests[0]
            prompt = f"{head}{code}\n\nf({argument}) =="
            return {"prompt": prompt, "completion": f" {value}", "answer": str(value)} | common
        right = {"completion": f"\n{body}", "answer": body}
        if task == "write":
            return {"prompt": head + signature} | right | common
        if task == "write_tested":
            asserts = "".join(f"assert f({a}) == {v}\n" for a, v in tests[:3])
            return {"prompt": head + asserts + signature} | right | common
        bug, wrong, reason = inject(steps, rng)
        if task == "repair":
            prompt = f"{head}{wrong}\n\n# fix\n{signature}"
            return {"prompt": prompt, "bug": bug, "buggy": wrong, "reason": reason} | right | common
        pair = {"chosen": f"\n{body}", "rejected": "\n" + wrong.split("\n", 1)[1]}
        return {"prompt": head + signature, "bug": bug, "reason": reason} | pair | common

    def score(self, row: Row, completion: str) -> float:
        """1.0 when the function passes all tests; `output` rows compare the value."""
        if row["task"] == "output":
            return float(cut(completion, "\n") == row["answer"])
        body = completion.split("<|end|>")[0].split(self.stop)[0].rstrip()
        return float(all(run(row["signature"] + body, a) == v for a, v in row["tests"]))

    def document(self, rng: random.Random) -> str:
        text = ""
        for _ in range(2):
            steps, wording = self.draw_train("write", "known", rng)
            text += f"# {describe(steps, wording)}\n{source(steps)}{self.stop}"
        return text


def describe(steps: tuple[Step, ...], wording: int) -> str:
    """The operations in words."""
    return ", ".join(OPERATIONS[name].wordings[wording].format(k=k) for name, k in steps)


def source(steps: tuple[Step, ...]) -> str:
    """The function: one assignment per operation, the last one returned."""
    name = "x" if OPERATIONS[steps[0][0]].kind == "nn" else "xs"
    expressions = [OPERATIONS[n].code.format(k=k) for n, k in steps]
    lines = [f" {name} = {e}" for e in expressions[:-1]] + [f" return {expressions[-1]}"]
    return "\n".join([f"def f({name}):", *lines])


def arguments(steps: tuple[Step, ...], count: int = 12) -> list[Any]:
    """Deterministic random arguments of the type that the program takes."""
    rng = random.Random(repr(steps))
    number = OPERATIONS[steps[0][0]].kind == "nn"
    return [
        rng.randint(-9, 20) if number else [rng.randint(0, 20) for _ in range(rng.randint(5, 8))] for _ in range(count)
    ]


def run(code: str, argument: Any) -> Any:
    """The value, or the error message as text."""
    try:
        return Program(code).call(argument)
    except ProgramError as error:
        return f"error: {error}"


def _runs(steps: tuple[Step, ...]) -> bool:
    """Does the program give a value for all its test arguments? The largest of nothing is none."""
    return not any(str(run(source(steps), a)).startswith("error") for a in arguments(steps))


def _mutants(steps: tuple[Step, ...]) -> list[tuple[str, str, str]]:
    """All (bug, code, reason) that can be made from a program, whether or not they change its behaviour."""
    code = source(steps)
    out = []
    lines = code.split("\n")
    for i, line in enumerate(lines[1:], 1):
        for a, b in ((" + ", " - "), (" - ", " + "), (" * ", " + "), (" % ", " * "), (" > ", " < "), (" == ", " > ")):
            if a in line:
                out.append(
                    (
                        "operator",
                        [*lines[:i], line.replace(a, b, 1), *lines[i + 1 :]],
                        f"line {i + 1} uses{b}where it needs{a}",
                    )
                )
        for place, char in enumerate(line):
            if char.isdigit():
                near = str((int(char) + 1) % 10)
                far = str((int(char) + 5) % 10)
                for bug, digit in (("constant", near), ("literal", far)):
                    changed = line[:place] + digit + line[place + 1 :]
                    out.append(
                        (bug, [*lines[:i], changed, *lines[i + 1 :]], f"line {i + 1} has {digit} where it needs {char}")
                    )
        if i < len(lines) - 1:
            out.append(("missing", lines[:i] + lines[i + 1 :], f"line {i + 1} is missing"))
            out.append(
                ("name", [*lines[:i], line.replace("x", "y", 1), *lines[i + 1 :]], f"line {i + 1} sets the wrong name")
            )
        if i < len(lines) - 2:
            out.append(
                ("order", [*lines[:i], lines[i + 1], line, *lines[i + 2 :]], f"lines {i + 1} and {i + 2} are swapped")
            )
    return [(bug, "\n".join(text), reason) for bug, text, reason in out]


def inject(steps: tuple[Step, ...], rng: random.Random) -> tuple[str, str, str]:
    """A bug that some test shows: its kind, the buggy code, and the reason in words."""
    code, tests = source(steps), arguments(steps, 6)
    wanted = [run(code, a) for a in tests]
    shown = [m for m in _mutants(steps) if [run(m[1], a) for a in tests] != wanted]
    kinds = sorted({m[0] for m in shown})
    if not kinds:
        return "name", code.replace("return", "return y +"), "the returned name does not exist"
    kind = rng.choice(kinds)
    return rng.choice([m for m in shown if m[0] == kind])
