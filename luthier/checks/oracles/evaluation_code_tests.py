"""The sandbox's own interpreter as judge, all subsets of samples counted one by one, and CPython's compiler."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from luthier import sandbox
from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of

SAMPLES = 5


class _Writer:
    """A subject that has the right function, the buggy one, and no Python at all, in a fixed pattern."""

    task = "causal_lm"

    def __init__(self, said: list[list[str]]):
        self.said = said

    def generate(self, prompts: list[Any], *limits: Any) -> list[str]:
        flat = [text for texts in self.said for text in texts]
        require(len(prompts) == len(flat), "not one prompt a sample")
        return flat


def _said() -> tuple[list[dict[str, Any]], list[list[str]]]:
    rows = sandbox.rows("programs", task="repair", split="test", n=9, seed=5)
    said = []
    for i, row in enumerate(rows):
        wrong = "\n" + row["buggy"].split("\n", 1)[1]
        kinds = [row["completion"], wrong, "\n return (", row["completion"] + "\n", "\n x = 1"]
        said.append([kinds[(i * j + j * j) % len(kinds)] for j in range(SAMPLES)])
    return rows, said


def oracle_interpreter() -> None:
    world, (rows, said) = sandbox.world("programs"), _said()
    scorer = method(__name__, samples=SAMPLES, k=(1, 2, 5), source="", program="{signature}{output}")
    answers = scorer.ask(_Writer(said), items_of(rows))
    right = [[bool(world.score(row, text)) for text in texts] for row, texts in zip(rows, said)]
    for k in (1, 2, 5):
        shares = []
        for marks in right:
            drawn = list(combinations(marks, k))
            shares.append(sum(any(some) for some in drawn) / len(drawn))
        equal(value(scorer, answers, f"pass@{k}"), sum(shares) / len(shares), f"pass@{k}")
    python = []
    for row, texts in zip(rows, said):
        for text in texts:
            try:
                compile(row["signature"] + text, "program", "exec")
                python.append(1.0)
            except SyntaxError:
                python.append(0.0)
    equal(value(scorer, answers, "compiles"), sum(python) / len(python), "compiles")
    require(0 < sum(python) < len(python), "the oracle saw nothing that is no Python")
