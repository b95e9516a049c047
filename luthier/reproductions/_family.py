"""What an experiment is: rows of measurements by seed, and claims judged on them.

An experiment never decides by hand: `claims` computes each claim from the measured rows, and the verdict follows. Where a
central claim fails, `explanation` says what was found instead.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

Row = dict[str, float]


@dataclass(frozen=True)
class Claim:
    """One assertion of the card.

    statement  what must appear;  measured  the number(s) found, in words;  holds  whether it does
    central    False for a side finding that is reported but does not decide the verdict
    headline   the one that is told where there is room for one
    """

    statement: str
    measured: str
    holds: bool
    central: bool = True
    headline: bool = False


class Experiment(ABC):
    """One experiment, run for several seeds.

    seeds    how many by default;  setup  model, data and settings in a sentence
    scope    what a claim that fails is limited to: "at <scope> these do not hold"
    """

    seeds: ClassVar[int] = 3
    setup: ClassVar[str] = ""
    scope: ClassVar[str] = "this size"

    @abstractmethod
    def measure(self, seed: int) -> Row:
        """Numbers of one seed."""

    @abstractmethod
    def claims(self, rows: list[Row]) -> list[Claim]:
        """The card's assertions on the rows of all seeds."""

    def explanation(self, rows: list[Row]) -> str:
        """What was found where a central claim does not hold."""
        failed = [c.statement for c in self.claims(rows) if c.central and not c.holds]
        return f"at {self.scope} these do not hold: {'; '.join(failed)}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the numbers, for the manifest."""
        told = {k: v for c in reversed(type(self).__mro__) for k, v in vars(c).items()}
        return {k: v for k, v in told.items() if not k.startswith("_") and isinstance(v, int | float | str)}


def mean(rows: list[Row], key: str) -> float:
    return statistics.fmean(r[key] for r in rows)


def spread(rows: list[Row], key: str) -> str:
    """Mean and standard deviation as text."""
    values = [r[key] for r in rows]
    sd = f" ± {_number(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{_number(statistics.fmean(values))}{sd}"


def _number(value: float) -> str:
    """Three decimals; counts by the thousand, and beyond a million three digits and the power of ten."""
    if abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"
