r"""Answer: the final answer of a longer text, such as a chain of thought, compared as a number where it is one.

    taken from, in this order:   the group of `pattern`, if given
                                 what follows the last "####"
                                 the last \boxed{...}
                                 what follows the last "answer is" or "Answer:"
                                 the last number
    right if   |a - b| <= 1e-6 max(1, |b|) for numbers (1,234  $5  50%  3/4  1e3), else equal after normalising

The reference goes through the same extraction, so a worked solution may serve as one. An output without an answer is
wrong; `answered` is the share that had one.
Cost:       one generation per item.
Paper:      answer format of GSM8K, Cobbe et al., 2021, arXiv:2110.14168; \boxed of MATH, Hendrycks et al., 2021.
Departures: none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from luthier.core.method import LuthierError
from luthier.evaluation._family import Item, TextScorer, same

_PLAIN = r"[-+−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?<![\w.])({_PLAIN}(?:\s*/\s*\d+)?)\s*%?(?!\w)")
_ANSWER = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces matched."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip()
    return None


def number(text: str) -> float | None:
    """The value of a text that is one number: signs, thousands, decimals, money, per cent, fractions, exponents."""
    found = _NUMBER.fullmatch(text.strip().rstrip("."))
    if not found:
        return None
    plain = re.sub(r"[\s,$]", "", found.group(1)).replace("−", "-")
    top, _, bottom = plain.partition("/")
    if not bottom:
        return float(top)
    return float(Fraction(top) / Fraction(bottom)) if float(bottom) else None


def extract(text: str, pattern: str = "") -> str | None:
    """The final answer, or None where there is none."""
    if pattern:
        found = re.findall(pattern, text)
        last = found[-1] if found else None
        return (last if isinstance(last, str) or last is None else next((g for g in last if g), None)) or None
    if "####" in text:
        after = text.rsplit("####", 1)[1].strip().splitlines()
        return after[0].strip() if after else None
    inside = boxed(text)
    if inside is not None:
        return inside
    said = _ANSWER.findall(text)
    if said:
        numbers = _NUMBER.findall(said[-1])
        return numbers[0].strip() if numbers else said[-1].strip().rstrip(".!")
    numbers = _NUMBER.findall(text)
    return numbers[-1].strip() if numbers else None


def equal(gold: str, said: str) -> bool:
    """Numbers by value, everything else by its words."""
    a, b = number(gold), number(said)
    if a is not None and b is not None:
        return abs(a - b) <= 1e-6 * max(1.0, abs(a))
    return same(gold, said)


@dataclass(frozen=True)
class Answer(TextScorer):
    paper: ClassVar[str] = "arXiv:2110.14168"
    cards: ClassVar[tuple[int, ...]] = (12, 16, 26)
    metrics: ClassVar[dict[str, bool]] = {"accuracy": True, "answered": True}
    proportions: ClassVar[frozenset[str]] = frozenset(metrics)
    sample: ClassVar[str] = "accuracy"
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    pattern: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as problem:
            raise LuthierError(f"answer: pattern {self.pattern!r} is not a regular expression: {problem}") from None

    def accepts(self, reference: str, item: Item) -> bool:
        golds = [extract(g) or g for g in item.accepted]
        return any(equal(g, extract(reference) or reference) for g in golds)

    def judge(self, output: str, item: Item) -> dict[str, float]:
        said = extract(output, self.pattern)
        golds = [extract(g) or g for g in item.accepted]
        return {
            "accuracy": float(said is not None and any(equal(g, said) for g in golds)),
            "answered": float(said is not None),
        }
