"""Code tests: generated programs are run against the tests of their task.

    pass@k   = 1 - C(n - c, k) / C(n, k)      of n samples of an item, c passed all tests;  mean over items
    compiles = share of samples that are Python
    tests    = share of tests that hold, over samples

    samples  n, drawn by the subject's decoder (copies of a prompt are different draws of a sampler)
    k        the ks of pass@k, each at most n
    program  how a program is put together from the row's columns and {output}
    entry    name of the function, for tests that are pairs of argument and value
    source   a sandbox path ("programs/write") for a scorer that brings its rows;  n, seed  how many, which
    cpu_seconds, memory_mb  limits of one run (`_runner.py`: no network, no files, no processes)
Tests stand in the column `tests`: statements, or pairs (argument, value).
Chance:     0.
Cost:       n generations an item and about 0.03 s a program.
Paper:      Chen et al., 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, eq. 1.
Departures: the estimator is computed with exact integers instead of a running product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, ClassVar, Self

import numpy as np

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._code import Answers, Item, RunLimits, Scorer, Verdict, need, run


@dataclass(frozen=True)
class CodeTests(Scorer):
    paper: ClassVar[str] = "arXiv:2107.03374"
    cards: ClassVar[tuple[int, ...]] = (21, 27, 37, 50, 62, 63)
    metrics: ClassVar[dict[str, bool]] = {"pass@1": True, "compiles": True, "tests": True}
    sample: ClassVar[str] = "pass@1"
    samples: int = 1
    k: tuple[int, ...] = (1,)
    program: str = "{prompt}{output}"
    entry: str = "f"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    source: str = ""
    n: int = 100
    seed: int = 0
    cpu_seconds: int = 3
    memory_mb: int = 256

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or max(self.k) > self.samples:
            raise LuthierError(f"code_tests: k {list(self.k)} must lie between 1 and samples, which is {self.samples}")

    @classmethod
    def example(cls) -> Self:
        return cls(source="programs/write", n=8)

    def rows(self) -> list[dict[str, Any]] | None:
        from luthier import sandbox

        return sandbox.rows(self.source, split="test", n=self.n, seed=self.seed) if self.source else None

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        tests = [self.tests(i) for i in items]
        said = subject.generate(
            [i.prompt for i in items for _ in range(self.samples)], self.max_new_tokens, self.stop
        )  # item by item
        by_item = [said[i * self.samples : (i + 1) * self.samples] for i in range(len(items))]
        ran = [[self.verdict_of(o, i, t) for o in outs] for outs, i, t in zip(by_item, items, tests, strict=True)]
        return self.answers(items, _stats(ran, self.k), [outs[0] for outs in by_item])

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**{f"pass@{k}": True for k in sorted({1, *self.k})}, "compiles": True, "tests": True}

    def tests(self, item: Item) -> list[str]:
        """The item's tests as statements."""
        told = item.row.get("tests")
        if not told:
            raise LuthierError(f"code_tests: row {item.id} has no tests (columns: {', '.join(sorted(item.row))})")
        told = [told] if isinstance(told, str) else told
        return [t if isinstance(t, str) else f"assert {self.entry}({t[0]!r}) == {t[1]!r}" for t in told]

    def verdict_of(self, output: str, item: Item, tests: Sequence[str]) -> Verdict:
        """How the program that `output` completes fares."""
        program = self.program.format_map({**item.row, "prompt": item.prompt, "output": output})
        return run(program, tests, RunLimits(cpu_seconds=self.cpu_seconds, memory_mb=self.memory_mb))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples, drawn from n without putting back, is among the c that pass."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def _stats(ran: Sequence[Sequence[Verdict]], ks: Sequence[int]) -> dict[str, list[float]]:
    stats = {
        f"pass@{k}": [pass_at_k(len(vs), sum(v.ok for v in vs), k) for vs in ran] for k in sorted({1, *ks})
    }  # fmt: skip
    stats["compiles"] = [float(np.mean([v.compiles for v in vs])) for vs in ran]
    stats["tests"] = [float(np.mean([np.mean(v.passed) for v in vs])) for vs in ran]
    return stats
