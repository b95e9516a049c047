"""What the conjugation study concludes from its rates, and the questions that it brings with it.

"What is 7 plus 12?" after two examples of repeating: "What" continues the examples, "19" answers the question
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.transforms import Transform
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._family import Answers, Item, Scorer, need, weighted_mean

__all__ = ["Answers", "Item", "Scorer", "language_rows", "need", "study"]

# ------------------------------------------------------------------------------------------------------- study


def study(answers: Answers, ways: Mapping[str, Transform], keeps: float) -> dict[str, Any]:
    """Rows {transform, exact, returns, expected, rival, base, recovery, difference, difficulty}; `chosen`; `conclusion`."""
    stats, told = answers.stats, []
    dropped = None if "base expected" not in stats else _mean(stats["expected"] - stats["base expected"], answers)
    for name, way in ways.items():
        at = f" {name}" if name else ""
        row: dict[str, Any] = {
            "transform": name or "none",
            "exact": way.is_exact,
            "returns": float(stats["returns" + at].mean()),
        }
        row |= {k: _share(stats[k + at]) for k in ("expected", "rival") if k + at in stats}
        if name:
            row["recovery"] = _mean(stats["recovery" + at], answers)
        if dropped is not None:
            before, plain = stats["base expected" + at], stats["base expected"]
            row["base"] = _share(before)
            row["same_difficulty"] = bool(before.mean() >= keeps * plain.mean())
            if "logp" + at in stats:
                row["difference"] = float((stats["logp" + at] - stats["base logp" + at]).mean())
        told.append(row)
    out: dict[str, Any] = {"transforms": told}
    if dropped is None:
        return out
    able = [r for r in told[1:] if r["same_difficulty"] and "difference" in r]
    chosen = min(able, key=lambda r: r["difference"], default=None)
    out |= {"lost": dropped, "chosen": None if chosen is None else chosen["transform"]}
    return out | {"conclusion": _conclusion(dropped, told[1:], chosen)}


def _conclusion(lost: Mapping[str, float], told: list[dict[str, Any]], chosen: dict[str, Any] | None) -> str:
    if lost["high"] >= 0:
        return "tuning cost no expected answers to prompts as they stand: there is nothing to recover"
    if chosen is None:
        what = "no transform was tried" if not told else "the base itself fails in other signs"
        return f"tuning cost expected answers; {what}, so that hidden and lost cannot be told apart"
    if chosen["recovery"]["low"] > 0:
        share = chosen["recovery"]["value"] / -lost["value"]
        return f"the ability is hidden rather than lost: '{chosen['transform']}' brings back {share:.0%} of what tuning cost"
    return f"'{chosen['transform']}' brings nothing back: the ability may be lost, or this transform is still too near"


def _share(hits: NDArray) -> dict[str, float]:
    low, high = statistics.wilson(float(np.sum(hits)), len(hits))
    return {"value": float(np.mean(hits)), "low": low, "high": high}


def _mean(values: NDArray, answers: Answers) -> dict[str, float]:
    stats = {"x": values}
    low, high = statistics.bootstrap(lambda s, w: weighted_mean(s["x"], w), stats, clusters=answers.clusters)
    return {"value": float(values.mean()), "low": low, "high": high}


# ---------------------------------------------------------------------------------------------------- language

INSTRUCTIONS = {"repeat": "Repeat the input.", "capitalise": "Write the input in capital letters."}
_PEOPLE = (
    "The baker",
    "My neighbour",
    "A young doctor",
    "The old gardener",
    "Her brother",
    "The tall pilot",
    "A quiet student",
)
_DEEDS = ("opened", "painted", "sold", "carried", "repaired", "forgot", "cleaned", "borrowed")
_THINGS = ("the red bicycle", "a heavy box", "the garden gate", "an old clock", "the long letter", "a small boat")
_WHEN = ("yesterday", "before lunch", "in the morning", "last week", "on Sunday", "after the rain")
_OPERATIONS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}


def language_rows(per_cell: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """Two tasks times two kinds of last input, `per_cell` rows each, in turn."""
    rng = random.Random(seed)
    return [
        {"id": f"{task}-{kind}-{i}", **_language_row(task, kind, rng)}
        for i in range(per_cell)
        for task in INSTRUCTIONS
        for kind in ("question", "gap")
    ]


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} {rng.choice(_THINGS)} {rng.choice(_WHEN)}."


def _language_row(task: str, kind: str, rng: random.Random) -> dict[str, Any]:
    shown = [_sentence(rng) for _ in range(2)]
    if kind == "question":
        a, b, word = rng.randint(4, 20), rng.randint(4, 20), rng.choice(list(_OPERATIONS))
        asked, rival = f"What is {a} {word} {b}?", str(_OPERATIONS[word](a, b))
    else:
        rival, rest = _sentence(rng).split(" ", 1)
        asked = f"____ {rest}"
    made = str.upper if task == "capitalise" else str
    blocks = [f"Input: {s}\nOutput: {made(s)}" for s in shown]
    prompt = "\n".join([INSTRUCTIONS[task], *blocks, f"Input: {asked}\nOutput:"])
    return {"prompt": prompt, "answer": made(asked.split(" ", 1)[0]), "rival": rival}
