"""TInt: an int that writes down every sum, product or maximum it takes part in (card 67).

Calculations on traced integers are ordinary Python; the recorder they share keeps one `Step` per operation, in order,
and a renderer turns the steps into a chain of thought. Two recorders never mix, and TInt equals int in value.

Paper:      Understanding the Effect of Noise in LLM Training Data with Algorithmic Chains of Thought, arXiv:2402.04004.
Departures: operations are recorded by the operands' recorder rather than by a global one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Step(NamedTuple):
    """One recorded operation: left op right = value."""

    op: str
    left: int
    right: int
    value: int


@dataclass
class Recorder:
    """The steps of one calculation, in order."""

    steps: list[Step] = field(default_factory=list)

    def ints(self, values: Iterable[int]) -> list["TInt"]:
        """Traced versions of plain integers."""
        return [TInt(v, self) for v in values]

    def note(self, op: str, left: int, right: int, value: int) -> "TInt":
        """Record one operation and return its traced value."""
        self.steps.append(Step(op, int(left), int(right), int(value)))
        return TInt(value, self)


class TInt(int):
    """An int whose operations are recorded; mixing with a plain int keeps the trace."""

    recorder: Recorder

    def __new__(cls, value: int, recorder: Recorder | None = None) -> "TInt":
        self = super().__new__(cls, value)
        self.recorder = recorder if recorder is not None else Recorder()
        return self

    def _record(self, op: str, left: int, right: int, value: int) -> "TInt":
        return self.recorder.note(op, left, right, value)

    def __add__(self, other: int) -> "TInt":
        return self._record("+", self, other, int(self) + int(other))

    def __radd__(self, other: int) -> "TInt":
        return self._record("+", other, self, int(other) + int(self))

    def __sub__(self, other: int) -> "TInt":
        return self._record("-", self, other, int(self) - int(other))

    def __rsub__(self, other: int) -> "TInt":
        return self._record("-", other, self, int(other) - int(self))

    def __mul__(self, other: int) -> "TInt":
        return self._record("*", self, other, int(self) * int(other))

    def __rmul__(self, other: int) -> "TInt":
        return self._record("*", other, self, int(other) * int(self))

    def __floordiv__(self, other: int) -> "TInt":
        return self._record("//", self, other, int(self) // int(other))

    def __rfloordiv__(self, other: int) -> "TInt":
        return self._record("//", other, self, int(other) // int(self))

    def __mod__(self, other: int) -> "TInt":
        return self._record("%", self, other, int(self) % int(other))

    def __rmod__(self, other: int) -> "TInt":
        return self._record("%", other, self, int(other) % int(self))

    def __neg__(self) -> "TInt":
        return self._record("neg", self, 0, -int(self))

    def maximum(self, other: int) -> "TInt":
        """The larger of two, recorded as `max`."""
        return self._record("max", self, other, max(int(self), int(other)))

    def add_modulo(self, other: int, modulus: int) -> "TInt":
        """A sum reduced by a modulus, recorded as one `+` step with the reduced value."""
        return self._record("+", self, other, (int(self) + int(other)) % modulus)
