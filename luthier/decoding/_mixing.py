"""Decoders that ask several models: their roles, and the sum as a `Mixture`.

    roles     options that name a model. One of them may be left out: the model that is asked (in a recipe: the one that
              is tuned) plays it
    terms     (role, weight, prompt of its own) of the sum, the first with positive weight
    choose    how tokens are chosen from the sum: any decoder, with its options
    draft_tokens  0, or how many tokens `drafter` drafts for the sum to verify (exact: see _speculation.py)

A model is a name, folder or run (as `luthier.load` takes them), a mapping of model settings, or the module itself. Named
models are loaded by whoever makes the subject; their tokenizers must be the asked model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import nn

from luthier.core.config import build
from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.mixture import FLOOR, Member, Mixture, Other, Wrap, shared_tokens
from luthier.core.subject import at_rest
from luthier.decoding._family import StepDecoder, certain, chooser_of, nucleus_probability, stream
from luthier.decoding._speculation import speculate

__all__ = ["certain", "nucleus_probability", "speculate", "stream"]


@dataclass(frozen=True)
class Bound:
    """An option that names a model, filled in. `size` is how many tokens it shares with all others."""

    model: nn.Module
    name: str
    size: int | None


@dataclass(frozen=True)
class CompanyDecoder(Decoder):
    """A decoder with other models in some of its options.

    roles   names of these options; an option is one model or a tuple of them
    asked   roles that the asked model may play where they are left out; exactly one is
    """

    roles: ClassVar[tuple[str, ...]] = ()
    asked: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        missing = [role for role in self.roles if getattr(self, role) in (None, ())]
        if self.asked and (len(missing) != 1 or missing[0] not in self.asked):
            raise LuthierError(
                f"{self.name} has the models {', '.join(self.roles)}: give all but one; the one left out "
                f"({' or '.join(self.asked)}) is the model that is asked"
            )
        if not self.asked and missing:
            raise LuthierError(f"{self.name} needs a model: give decoding.{missing[0]}")

    def for_models(self, load: Callable[[Any], Other], tokenizer: Any = None) -> Self:
        """Each named model once, whatever the number of roles that it plays."""
        told = {role: getattr(self, role) for role in self.roles}
        named = [m for value in told.values() for m in _each(value) if isinstance(m, str | Mapping)]
        loaded: list[tuple[Any, Other]] = []
        for one in named:
            if all(one != known for known, _ in loaded):
                loaded.append((one, load(one)))
        known = [(o.name, o.tokenizer) for _, o in loaded if o.tokenizer is not None]
        size = None if tokenizer is None or not loaded else shared_tokens([("the model asked", tokenizer), *known])

        def bound(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return tuple(bound(v) for v in value)
            found = next((o for one, o in loaded if type(one) is type(value) and one == value), None)
            return value if found is None else Bound(found.model, found.name, size)

        return replace(self, **{role: bound(value) for role, value in told.items()})

    def model_of(self, value: Any, asked: nn.Module) -> nn.Module:
        """The module behind an option."""
        if value is None:
            return asked
        if isinstance(value, Bound):
            return value.model
        if isinstance(value, nn.Module):
            return value
        raise LuthierError(
            f"{self.name}: model '{value}' is not loaded: ask luthier.load(...).subject(decoder), or give the module itself"
        )

    @property
    def size(self) -> int | None:
        """Tokens that all models know, where that was found out."""
        sizes = [m.size for role in self.roles for m in _each(getattr(self, role)) if isinstance(m, Bound)]
        return min((s for s in sizes if s is not None), default=None)


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else [value]


@dataclass(frozen=True)
class MixingDecoder(CompanyDecoder):
    """A sum of models. A method gives `terms`, and `options` where the sum counts for some tokens only.

    drafter  the role that drafts, where `draft_tokens` is set
    """

    drafter: ClassVar[str | None] = None

    choose: Any = "greedy"
    floor: float = FLOOR
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_tokens and self.drafter is None:
            raise LuthierError(
                f"{self.name}: no part of the sum drafts: remove draft_tokens, or choose by 'speculative'"
            )
        if self.draft_tokens < 0:
            raise LuthierError(f"{self.name}: draft_tokens is {self.draft_tokens}: give 0 or more")
        if not isinstance(self.choose, Decoder):
            self.chooser  # noqa: B018  mistakes in its options show now

    def terms(self) -> list[tuple[str | tuple[str, int], float, Any]]:
        """(role, or role and place in it; weight; prompt) of each model of the sum."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Further options of the `Mixture`."""
        return {}

    @property
    def chooser(self) -> Decoder:
        return chooser_of(self.choose)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        prompts: dict[str, Any] = {
            name: wrap_of(getattr(self, name), tokenizer, name)
            for name in vars(self)
            if name.endswith("prompt") and isinstance(getattr(self, name), str)
        }
        return replace(self, choose=self.chooser.for_tokenizer(tokenizer), **prompts)

    def for_models(self, load: Callable[[Any], Other], tokenizer: Any = None) -> Self:
        found = super().for_models(load, tokenizer)
        return replace(found, choose=self.chooser.for_models(load, tokenizer))

    def alone(self) -> Decoder:
        return self.chooser.alone()

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int] | None:
        return self.chooser.allowed(said, limits)

    def mixture(self, model: nn.Module) -> Mixture:
        """The sum, with `model` in the role that was left out."""
        members = []
        for role, weight, prompt in self.terms():
            value = getattr(self, role) if isinstance(role, str) else getattr(self, role[0])[role[1]]
            if isinstance(prompt, str) and prompt:
                raise LuthierError(
                    f"{self.name}: a prompt of its own needs the tokenizer: ask a subject, or give a Wrap"
                )
            members.append(Member(self.model_of(value, model), weight, prompt or Wrap()))
        return Mixture(members, size=self.size, floor=self.floor, **self.options())

    def over(self, model: nn.Module) -> nn.Module:
        return self.chooser.over(self.mixture(model))

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        mixed, chooser = self.mixture(model), self.chooser
        if not self.draft_tokens:
            return chooser.generate(mixed, ids, limits)
        if not isinstance(chooser, StepDecoder):
            raise Refusal(f"{self.name}: drafts are verified for greedy and nucleus, not for {chooser.name}")
        roles = [m.model for m in mixed.members]
        assert self.drafter is not None
        by = next((i for i, m in enumerate(roles) if m is self.model_of(getattr(self, self.drafter), model)), None)
        if by is None:
            raise Refusal(f"{self.name}: '{self.drafter}' has weight 0 and cannot draft: remove draft_tokens")
        with at_rest(mixed):
            return speculate(stream(mixed, limits.pad_id), by, ids, limits, chooser.probability, self.draft_tokens)


def plain_choice(temperature: float, top_p: float, top_k: int) -> Decoder:
    """The decoder that draws from a model's own distribution in this way."""
    found: Decoder = build(
        "decoding", {"name": "nucleus", "temperature": temperature, "top_p": top_p, "top_k": top_k}, "decoding"
    )
    return found


def wrap_of(template: str, tokenizer: Any, name: str) -> Wrap | str:
    """A text with {prompt} as the ids before and after what the others read; they are tokenised by themselves."""
    if not template:
        return template
    before, found, after = template.partition("{prompt}")
    if not found:
        raise LuthierError(f"{name}: the text needs {{prompt}} where the prompt goes")
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else () for text in (before, after)]
    return Wrap(ids[0], ids[1], tokenizer.bos_token_id)


@dataclass(frozen=True)
class EmulatedDecoder(MixingDecoder):
    """log pi = beta log base + (log tuned - beta log reference): pretraining of one size, tuning of another.

    trusted_top_p  the change counts only in this nucleus of the tuned model; elsewhere the base speaks alone
    """

    roles: ClassVar[tuple[str, ...]] = ("base", "tuned", "reference")
    asked: ClassVar[tuple[str, ...]] = ("base", "tuned", "reference")

    base: Any = None
    tuned: Any = None
    reference: Any = None
    trusted_top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.trusted_top_p <= 1:
            raise LuthierError(f"{self.name}: trusted_top_p is {self.trusted_top_p}: give a share above 0 and up to 1")

    @classmethod
    def example(cls) -> Self:
        return cls(tuned="tuned", reference="reference")

    @property
    def strength(self) -> float:
        return 1.0

    def terms(self) -> list[tuple[str | tuple[str, int], float, Any]]:
        return [("base", self.strength, ""), ("tuned", 1.0, ""), ("reference", -self.strength, "")]

    def options(self) -> dict[str, Any]:
        return {"trusted": (1, self.trusted_top_p)} if self.trusted_top_p < 1 else {}
