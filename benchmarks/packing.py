"""Where packing beats padding, and a shared prompt beats separate rows: the thresholds of `core/loop.py` come from here.

    python -m benchmarks.packing --folder DIR [--threads 1]

Several examples in one row save padding, but a block mask is dense: attention is computed between all positions of a
row, also where the mask forbids it, and rows become as long as the longest example of the data. One prompt shared by
two answers saves the second pass over the prompt at the same price. Each line is the cost of the dense layout divided
by that of the plain one, forward and backward, on the same examples in one process: below 1 it pays.

`padding`  share of positions that the plain layout pads;  `tokens`  tokens of the trees over tokens of separate rows
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes


def lengths(kind: str, n: int, rng: np.random.Generator) -> list[int]:
    """Lengths of about 160 tokens on average: those of GSM8K, or log-normal ones of a given spread (chat is wide)."""
    if kind == "gsm8k":
        found, _ = shapes.gsm8k_lengths()
        return [sum(found[i]) for i in rng.integers(len(found), size=n)]
    spread = float(kind)
    drawn = rng.lognormal(np.log(160) - spread**2 / 2, spread, size=n)
    return np.clip(drawn, 8, 640).astype(int).tolist()


def main() -> None:
    told = contender.asked()
    rng = np.random.default_rng(0)
    runner = Runner(told.small, time.process_time if told.threads == 1 else time.perf_counter)
    rows = [
        packing(runner, kind, grouped, told, rng)
        for kind in ("gsm8k", "0.4", "0.8", "1.2")
        for grouped in (True, False)
    ]
    trees = [
        sharing(runner, prompt, answer, told, rng) for prompt, answer in ((25, 150), (55, 125), (100, 100), (200, 60))
    ]
    contender.say({"contender": "packing", "packing": rows, "sharing": trees})


class Runner:
    """Forward and backward of a batch, timed; the two layouts of a comparison take turns."""

    def __init__(self, small: bool, clock: Any):
        from luthier.core.logprobs import Scorer

        self.model, self.clock = shapes.model(small).train(), clock
        self.scorer, self.top = Scorer(self.model), shapes.vocabulary(small)

    def seconds(self, batch: Any) -> float:
        begun = self.clock()
        self.scorer.token_logp(batch).sum().backward()
        spent = self.clock() - begun
        self.model.zero_grad()
        return spent

    def ratio(self, plain: Sequence[Any], dense: Sequence[Any], repeats: int = 1) -> float:
        """Cost of `dense` over `plain`; the least of each batch's repeats, since others only ever add."""
        totals = [0.0, 0.0]
        self.seconds(plain[0])
        for a, b in zip(plain, dense, strict=True):
            times = [(self.seconds(a), self.seconds(b)) for _ in range(repeats)]
            totals[0] += min(t[0] for t in times)
            totals[1] += min(t[1] for t in times)
        return totals[1] / totals[0]


def packing(runner: Runner, kind: str, grouped: bool, told: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Steps of the loop's own plan, padded and packed."""
    from luthier.core.batch import Plan, TextExample, collate_packed, collate_text, pack

    sizes = lengths(kind, 50 * told.batch, rng)
    steps = Plan(sizes, told.batch, group_by_length=grouped).epoch(0)
    steps = sorted(steps, key=lambda rows: sum(sizes[i] for i in rows))
    chosen = [steps[int((k + 0.5) * len(steps) / told.steps)] for k in range(told.steps)]
    plain, dense = [], []
    for rows in chosen:
        examples = [TextExample(i, rng.integers(2, runner.top, size=sizes[i]).tolist(), _few(sizes[i])) for i in rows]
        plain.append(collate_text(examples, shapes.PAD))
        bins = pack([len(e) for e in examples], max(sizes))
        dense.append(collate_packed([[examples[i] for i in b] for b in bins], shapes.PAD))
    padding = 1 - sum(sum(sizes[i] for i in s) for s in steps) / sum(len(s) * max(sizes[i] for i in s) for s in steps)
    return {"lengths": kind, "grouped": grouped, "padding": padding, "cost": runner.ratio(plain, dense)}


def _few(n: int) -> list[bool]:
    """Few tokens are trained on: the head costs the same in both layouts and would only hide what differs."""
    return [False] * (n - 4) + [True] * 4


def sharing(runner: Runner, prompt: int, answer: int, told: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Pairs as trees and as separate rows."""
    from luthier.core.batch import GroupExample, collate_groups

    def ids(n: int) -> list[int]:
        return rng.integers(2, runner.top, size=n).tolist()

    plain, dense, shared, apart = [], [], 0, 0
    for _ in range(told.steps):
        given = [GroupExample(i, ids(prompt), [ids(answer), ids(answer)]) for i in range(told.batch // 2)]
        plain.append(collate_groups(given, shapes.PAD, share_prompt=False))
        dense.append(collate_groups(given, shapes.PAD, share_prompt=True))
        shared += dense[-1].tokens
        apart += plain[-1].tokens
    return {"prompt": prompt, "answer": answer, "tokens": shared / apart, "cost": runner.ratio(plain, dense)}


if __name__ == "__main__":
    main()
