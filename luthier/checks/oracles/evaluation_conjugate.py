"""The study against a loop by hand: a puppet that reads prompts in other signs, and answers by a table."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np

from luthier.checks._compare import require
from luthier.core import catalog
from luthier.evaluation._family import items_of

SIGNS = dict(zip("abcdefghij", "qrstuvwxyz", strict=True))
N = 40
WORDS = {"base": (0.9, 0.8), "tuned": (0.1, 0.6)}
"""How often, by every tenth item, the expected answer is given to prompts as they stand, and in other signs."""


def _rows() -> list[dict[str, Any]]:
    return [{"id": str(i), "prompt": f"abc {i:02d}", "answer": f"cab {i}", "rival": f"{i + 3}"} for i in range(N)]


def _subject(who: str) -> Any:
    def said(prompt: str) -> str:
        word, number = prompt.split()
        i, other = int(number), word != "abc"
        if i % 10 < 10 * WORDS[who][other]:
            return " " + ("sqr" if other else "cab") + f" {i}, and more"
        return f" {i + 3}"

    def logp(texts: list[str]) -> list[np.ndarray]:
        """-1 a token; the tuned model expects plain prompts more, by 0.5."""
        return [np.full(4, -0.5 if who == "tuned" and t.startswith("abc") else -1.0) for t in texts]

    return SimpleNamespace(task="causal_lm", generate=lambda p, *more: [said(t) for t in p], token_logp=logp)


def oracle_loop() -> None:
    method = catalog.load("evaluation", "conjugate")(transforms={"b": {"name": "alphabet_map", "pairs": SIGNS}})
    items = items_of(_rows())
    base = method.ask(_subject("base"), items)
    tuned = method.ask(_subject("tuned"), items, base)
    for who, answers in (("base", base), ("tuned", tuned)):
        for at, share in zip(("", " b"), WORDS[who], strict=True):
            hits = [float(i % 10 < 10 * share) for i in range(N)]
            require(
                list(answers.stats["expected" + at]) == hits, f"{who}: expected{at} is {answers.stats['expected' + at]}"
            )
            require(list(answers.stats["rival" + at]) == [1 - h for h in hits], f"{who}: rival{at}")
    told = method.details(tuned)
    plain, other = told["transforms"]
    for row, (before, after) in ((plain, (0.9, 0.1)), (other, (0.8, 0.6))):
        require(abs(row["base"]["value"] - before) < 1e-12, f"base rate {row['base']}")
        require(abs(row["expected"]["value"] - after) < 1e-12, f"tuned rate {row['expected']}")
    recovered = [float(i % 10 < 6) - float(i % 10 < 1) for i in range(N)]
    require(abs(other["recovery"]["value"] - statistics.fmean(recovered)) < 1e-12, f"recovery {other['recovery']}")
    require(abs(plain["difference"] - 0.5) < 1e-6 and abs(other["difference"]) < 1e-6, "the differences of log p")
    require(told["chosen"] == "b" and "hidden" in told["conclusion"], f"{told['chosen']}: {told['conclusion']}")
