"""Instruction data out of a few seed tasks (self-instruct), its translation with checks, and rankings as pairs.

    pool <- seeds;  repeat: show `shown` tasks of the pool, `own` of them new ones, to a generator; of what it answers keep c if
        max_{t in pool} ROUGE-L(c, t) < threshold,   fewest <= words of c <= most,   no banned word,   not there already

    ROUGE-L(a, b) = 2 LCS(a, b) / (len a + len b)          over words of instruction and input, in [0, 1]

A task is a row of instruction, input and output. A generator is any function of (tasks shown, seed) that returns tasks: of a
template, or of a model behind the same function.
Paper:      Wang et al., 2022, "Self-Instruct", arXiv:2212.10560, section 2.2; translation and ranking: Lai et al., 2023, "Okapi",
            arXiv:2307.16039, section 2.
Departures: words are compared with the input's, not those of the instruction alone: short instructions of one kind differ by it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from luthier.core.method import LuthierError

Task = dict[str, str]
Generator = Callable[[Sequence[Task], int], Sequence[Task]]
BANNED = (
    "image",
    "images",
    "picture",
    "pictures",
    "graph",
    "graphs",
    "file",
    "files",
    "map",
    "maps",
    "plot",
    "video",
    "audio",
)
"""What a model of text cannot do anything with."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(a: str, b: str) -> float:
    """F-measure of the longest common subsequence of two texts' words."""
    return _rouge(words(a), words(b), 0.0)


def _rouge(a: Sequence[str], b: Sequence[str], least: float) -> float:
    """ROUGE-L where it is at least `least`; else anything below: words in common, in any order, bound it."""
    total = len(a) + len(b)
    bound = 2 * (Counter(a) & Counter(b)).total() / total if total else 0.0
    return bound if bound < least else 2 * common(a, b) / total if total else 0.0


@dataclass(frozen=True)
class Filter:
    """What may join a pool. `fewest` and `most` words of instruction and input together."""

    threshold: float = 0.7
    fewest: int = 3
    most: int = 150
    banned: tuple[str, ...] = BANNED

    def refuses(self, task: Task, pool: Sequence[Sequence[str]], known: set[tuple[str, ...]]) -> str:
        """Why a candidate is dropped, in a word; empty: it is kept. `pool` are the words of every task, `known` the same."""
        said = asked(task)
        if not task.get("instruction", "").strip() or not task.get("output", "").strip():
            return "empty"
        if tuple(said) in known:
            return "duplicate"
        if not self.fewest <= len(said) <= self.most:
            return "length"
        if set(said) & set(self.banned):
            return "banned"
        return "similar" if any(_rouge(said, t, self.threshold) >= self.threshold for t in pool) else ""


def asked(task: Task) -> list[str]:
    """The words that tell one task from another."""
    return words(f"{task.get('instruction', '')} {task.get('input') or ''}")


def self_instruct(
    seeds: Sequence[Task], generator: Generator, wanted: int, *, seed: int = 0, shown: int = 8, own: int = 2,
    keep: Filter | None = None, patience: int = 50,
) -> tuple[list[Task], Counter[str]]:  # fmt: skip
    """`wanted` new tasks, in the order they were made, and how many candidates were kept and dropped, by reason.

    Raises LuthierError where `patience` rounds in a row bring nothing new.
    """
    if not seeds:
        raise LuthierError("self-instruct needs seed tasks: rows with instruction, input and output")
    keep, counts, new = keep or Filter(), Counter[str](), list[Task]()
    pool = [asked(t) for t in seeds]
    known, rounds, idle = {tuple(t) for t in pool}, 0, 0
    while len(new) < wanted:
        rng = random.Random(f"{seed}/self-instruct/{rounds}")
        some = rng.sample(new, min(own, len(new)))
        some += rng.sample(list(seeds), min(shown - len(some), len(seeds)))
        before = len(new)
        for task in generator(some, rng.randrange(2**31)):
            why = keep.refuses(task, pool, known)
            counts[why or "kept"] += 1
            if not why and len(new) < wanted:
                new.append(task)
                pool.append(asked(task))
                known.add(tuple(pool[-1]))
        rounds, idle = rounds + 1, idle + 1 if len(new) == before else 0
        if idle >= patience:
            told = ", ".join(f"{n} {why}" for why, n in counts.most_common())
            raise LuthierError(
                f"self-instruct: {patience} rounds brought nothing new after {len(new)} of {wanted} tasks ({told}): ask for "
                "fewer, raise the threshold, or give more seed tasks"
            )
    return new, counts


def leaked(train: Sequence[str], held_out: Sequence[str], n: int = 13) -> list[int]:
    """Which of `held_out` share `n` words in a row with a text of `train`; shorter texts are compared whole."""

    def grams(text: str) -> set[tuple[str, ...]]:
        said = words(text)
        return {tuple(said[i : i + n]) for i in range(max(1, len(said) - n + 1))}

    seen = set[tuple[str, ...]]().union(*map(grams, train))
    return [i for i, text in enumerate(held_out) if grams(text) & seen]


# --------------------------------------------------------------------------------------------- translation


def mistranslated(source: str, target: str, ratio: float = 2.0) -> str:
    """What is wrong with a pair, in a word; empty: nothing. `ratio` bounds the longer text's words over the shorter's."""
    a, b = source.split(), target.split()
    if bool(a) != bool(b):
        return "empty"
    if sorted(re.findall(r"\d+", source)) != sorted(re.findall(r"\d+", target)):
        return "numbers"
    if sorted(re.findall(r"[{}<>\[\]]", source)) != sorted(re.findall(r"[{}<>\[\]]", target)):
        return "brackets"
    if a and max(len(a), len(b)) > ratio * min(len(a), len(b)):
        return "length"
    return "untranslated" if a == b and any(w.isalpha() for w in a) else ""


def translated(
    tasks: Sequence[Task], translate: Callable[[str], str], ratio: float = 2.0
) -> tuple[list[Task], Counter[str]]:
    """Tasks in another language, those of which a part went wrong left out, and counts by reason."""
    out, counts = [], Counter[str]()
    for task in tasks:
        found = {k: translate(task[k]) if task.get(k) else "" for k in ("instruction", "input", "output")}
        why = next(filter(None, (mistranslated(task.get(k) or "", t, ratio) for k, t in found.items())), "")
        counts[why or "kept"] += 1
        if not why:
            out.append(found)
    return out, counts


# ------------------------------------------------------------------------------------------------- ranking


def pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) of every two answers with different ranks, 1 the best: k (k - 1) / 2 of k where no two are equal."""
    both = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in both if ranks[i] != ranks[j]]


def ranked_row(prompt: Any, answers: Sequence[str], ranks: Sequence[float]) -> dict[str, Any] | None:
    """A row of type ranked, each answer once; None where nothing is better than anything else."""
    first = dict(zip(reversed(answers), reversed(ranks), strict=True))
    different = dict(sorted(first.items(), key=lambda told: answers.index(told[0])))
    if not pairs(list(different.values())):
        return None
    return {"prompt": prompt, "completions": list(different), "ranks": list(different.values())}
