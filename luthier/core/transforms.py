"""Rewriting a text so that it says the same in other signs, and undoing it: what conjugation puts around a model.

    forward   a text, or a prompt, as the model is to read it
    inverse   undoes it, on a whole text or a whole answer
    is_exact  whether inverse(forward(text)) == text for every text

identity       nothing
scale_labels   numbers times `factor`: all of a text, or those that follow `before` where the text has it
alphabet_map   `pairs` of single characters, or of words, exchanged; a pair goes both ways, so that nothing is lost
leetspeak      letters as the digits they look like: a4 e3 i1 o0 s5 t7; numbers stay, capitals become small
pig_latin      string -> ing-stray, apple -> apple-ay
template_swap  phrases (field names, delimiters) for others, all at once
translate      any two functions, as "module:function" or callables: a translator and the way back

Where `is_exact` is false, `returns` tells it of one text.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property
from typing import Any, ClassVar

from luthier.core.functions import function_named
from luthier.core.method import LuthierError


class Transform(ABC):
    """A rewriting of texts."""

    is_exact: ClassVar[bool] = True

    @abstractmethod
    def forward(self, text: str) -> str: ...

    @abstractmethod
    def inverse(self, text: str) -> str: ...

    def returns(self, text: str) -> bool:
        """Whether this text comes back as it was."""
        return self.inverse(self.forward(text)) == text


@dataclass(frozen=True)
class Identity(Transform):
    """Every text as it is."""

    def forward(self, text: str) -> str:
        return text

    def inverse(self, text: str) -> str:
        return text


_NUMBER = r"(?<![0-9.])(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?![0-9])"
"""A number as it is usually written; what is written otherwise (007, 1.2.3) stays as it is."""


@dataclass(frozen=True)
class ScaleLabels(Transform):
    """Numbers times `factor`. With `before`, those alone that stand right after it; a text without it is an answer."""

    factor: float
    before: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int | float) or not 0 < self.factor < float("inf"):
            raise LuthierError(f"transform scale_labels: factor is {self.factor}: give a positive number")

    def forward(self, text: str) -> str:
        return self._each(text, lambda number, context: context.multiply(number, self._by))

    def inverse(self, text: str) -> str:
        return self._each(text, self._divided)

    @property
    def _by(self) -> Decimal:
        by = Decimal(str(self.factor)).normalize()
        return by.quantize(Decimal(1)) if _places(by) > 0 else by

    def _divided(self, number: Decimal, context: Context) -> Decimal:
        """With the digits that the number had before it was multiplied, if it is such a number; else rounded to 12."""
        short = Context(12).divide(number, self._by)
        places = min(0, _places(number) - _places(self._by))
        exact = context.divide(number, self._by).quantize(Decimal(1).scaleb(places), context=context)
        return exact if context.multiply(exact, self._by) == number else short

    def _each(self, text: str, change: Callable[[Decimal, Context], Decimal]) -> str:
        marked = bool(self.before) and self.before in text
        found = re.compile(rf"({re.escape(self.before)}\s*-?)({_NUMBER})" if marked else rf"()({_NUMBER})")

        def changed(match: re.Match[str]) -> str:
            context = Context(prec=2 * len(match[2]) + 60)
            return match[1] + format(change(Decimal(match[2]), context), "f")

        return found.sub(changed, text)


def _places(number: Decimal) -> int:
    return int(number.as_tuple().exponent)


@dataclass(frozen=True)
class AlphabetMap(Transform):
    """Characters, or words, exchanged by `pairs`. Chains (a for b, b for c) close to a circle: one-to-one on every text."""

    pairs: Mapping[str, str]

    def __post_init__(self) -> None:
        _of_texts("alphabet_map", self.pairs)
        if not self.pairs or len(set(self.pairs.values())) < len(self.pairs):
            raise LuthierError("transform alphabet_map: pairs must be some, and no two may end in the same sign")
        if not self._by_characters and not all(re.fullmatch(r"\w+", s) for p in self.pairs.items() for s in p):
            raise LuthierError(
                "transform alphabet_map: pairs must be single characters, or words of letters, digits and _"
            )

    @cached_property
    def _by_characters(self) -> bool:
        return all(len(sign) == 1 for pair in self.pairs.items() for sign in pair)

    @cached_property
    def _there(self) -> dict[str, str]:
        """The permutation: what is a target and no source goes to the beginning of its chain."""
        back = {b: a for a, b in self.pairs.items()}
        out = dict(self.pairs)
        for end in back.keys() - self.pairs.keys():
            start = end
            while start in back:
                start = back[start]
            out[end] = start
        return out

    @cached_property
    def _back(self) -> dict[str, str]:
        return {b: a for a, b in self._there.items()}

    def forward(self, text: str) -> str:
        return self._exchanged(text, self._there)

    def inverse(self, text: str) -> str:
        return self._exchanged(text, self._back)

    def _exchanged(self, text: str, by: Mapping[str, str]) -> str:
        return re.sub(r"(?s)." if self._by_characters else r"\w+", lambda m: by.get(m[0], m[0]), text)


_LEET = dict(zip("aeiost", "431057", strict=True))


@dataclass(frozen=True)
class Leetspeak(Transform):
    """Letters as digits. On the way back a run of digits is a number, and digits beside letters are letters."""

    is_exact: ClassVar[bool] = False

    def forward(self, text: str) -> str:
        return "".join(_LEET.get(c.lower(), c) for c in text)

    def inverse(self, text: str) -> str:
        letters = {digit: letter for letter, digit in _LEET.items()}

        def read(word: re.Match[str]) -> str:
            return word[0] if word[0].isdigit() else "".join(letters.get(c, c) for c in word[0])

        return re.sub(r"\w+", read, text)


_CONSONANTS = "[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]*"


@dataclass(frozen=True)
class PigLatin(Transform):
    """The consonants that a word begins with go to its end, with -ay. The hyphen says where they are, so none is lost."""

    def forward(self, text: str) -> str:
        return re.sub(rf"({_CONSONANTS})([A-Za-z]*)", lambda m: f"{m[2]}-{m[1]}ay" if m[0] else "", text)

    def inverse(self, text: str) -> str:
        return re.sub(rf"(?<![A-Za-z])([A-Za-z]*)-({_CONSONANTS})ay(?![A-Za-z])", r"\2\1", text)


@dataclass(frozen=True)
class TemplateSwap(Transform):
    """Phrases for others, the longest first. It comes back where the text held none of the new phrases."""

    is_exact: ClassVar[bool] = False
    pairs: Mapping[str, str]

    def __post_init__(self) -> None:
        _of_texts("template_swap", self.pairs)
        if not self.pairs or "" in {*self.pairs, *self.pairs.values()}:
            raise LuthierError("transform template_swap: pairs must be some, and no phrase may be empty")
        if len(set(self.pairs.values())) < len(self.pairs):
            raise LuthierError("transform template_swap: two phrases become the same: there is no way back")

    def forward(self, text: str) -> str:
        return _replaced(text, self.pairs)

    def inverse(self, text: str) -> str:
        return _replaced(text, {b: a for a, b in self.pairs.items()})


def _of_texts(name: str, pairs: Any) -> None:
    odd = [s for p in pairs.items() for s in p if not isinstance(s, str)] if isinstance(pairs, Mapping) else [pairs]
    if odd:
        raise LuthierError(f"transform {name}: pairs hold {odd[0]!r}: give {{text: text, ...}}, digits in quotes")


def _replaced(text: str, by: Mapping[str, str]) -> str:
    phrases = sorted(by, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, phrases)), lambda m: by[m[0]], text)


@dataclass(frozen=True)
class Translate(Transform):
    """`to` translates a text, `back` translates an answer into the language of the prompt."""

    is_exact: ClassVar[bool] = False
    to: Any
    back: Any

    def __post_init__(self) -> None:
        _ = self._functions  # a name that leads nowhere shows now

    @cached_property
    def _functions(self) -> tuple[Callable[[str], str], Callable[[str], str]]:
        to, back = (t if callable(t) else function_named(str(t), "transform translate:") for t in (self.to, self.back))
        return to, back

    def forward(self, text: str) -> str:
        return self._functions[0](text)

    def inverse(self, text: str) -> str:
        return self._functions[1](text)


TRANSFORMS: dict[str, type[Transform]] = {
    "identity": Identity, "scale_labels": ScaleLabels, "alphabet_map": AlphabetMap, "leetspeak": Leetspeak,
    "pig_latin": PigLatin, "template_swap": TemplateSwap, "translate": Translate,
}  # fmt: skip


def transform(told: Transform | str | Mapping[str, Any]) -> Transform:
    """A transform from its name, or from {name: ..., options}. Raises LuthierError."""
    if isinstance(told, Transform):
        return told
    options: dict[str, Any] = {"name": told} if isinstance(told, str) else dict(told)
    name = str(options.pop("name", ""))
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS, 1, 0.5)
        guess = f": did you mean '{near[0]}'?" if near else f": one of {', '.join(TRANSFORMS)}"
        raise LuthierError(f"unknown transform '{name}'{guess}")
    made: Any = TRANSFORMS[name]
    fields = {f.name: f for f in dataclasses.fields(made)}
    if odd := [k for k in options if k not in fields]:
        raise LuthierError(
            f"transform {name}: '{odd[0]}' is none of its options ({', '.join(fields) or 'it has none'})"
        )
    missing = [k for k, f in fields.items() if k not in options and f.default is dataclasses.MISSING]
    if missing:
        raise LuthierError(f"transform {name}: give '{missing[0]}'")
    return made(**options)  # type: ignore[no-any-return]
