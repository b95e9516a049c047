"""Conjugate prompting: the model reads the prompt in other signs, and its answer is brought back whole.

    y = s^-1( L( s(P) ) )          P the prompt, s a transform of core/transforms.py, L any decoder of the model

    transform  s: leetspeak, or {name: alphabet_map, pairs: ...};   choose  L: greedy, nucleus, proxy_tuning, ...
A tuned model that takes P for the task that it was tuned on may take s(P), which looks unlike the tuning data, for what it
is: what was only hidden comes back, and what is lost does not. s must keep the task; `evaluation/conjugate` measures that.
Special tokens stay where they are, and so does a piece of text that s leaves alone. Stop strings are looked for in
s^-1(answer), max_new_tokens counts tokens of L. A prompt that is too long in other signs is refused, never cut. Words of a chat
template that are no special tokens are rewritten as well: `template_swap` leaves them alone, evaluation/conjugate always does.
Refusals:   the model is asked P as it stands first, and where it refuses, the refusal is the answer: nothing is got at in other
            signs that the model says no to. What an audit wants to know of that are rates: evaluation/conjugate.
Identities: s the identity: what L says, to the last bit.
Cost:       two generations, the second with as many tokens more as s needs.
Paper:      Kotha et al., 2024, "Understanding Catastrophic Forgetting in Language Models via Implicit Inference",
            arXiv:2309.10105, section 3.
Departures: `logp` is that of the answer in other signs, as L said it; log-probabilities of given texts are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, ClassVar, Self

from torch import nn

from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.mixture import Other
from luthier.core.refusing import kind_of
from luthier.core.subject import TextLimits, window_of
from luthier.core.transforms import Identity, Transform
from luthier.core.transforms import transform as transform_of
from luthier.decoding._family import chooser_of


@dataclass(frozen=True)
class Conjugate(Decoder):
    paper: ClassVar[str] = "arXiv:2309.10105"
    cards: ClassVar[tuple[int, ...]] = (9,)
    rewrites: ClassVar[bool] = True

    transform: Any = "identity"
    choose: Any = "greedy"
    tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _ = self.by, self.chooser  # mistakes in their options show now

    @property
    def by(self) -> Transform:
        return transform_of(self.transform)

    @property
    def chooser(self) -> Decoder:
        return chooser_of(self.choose)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        return replace(self, tokenizer=tokenizer, transform=self.by, choose=self.chooser.for_tokenizer(tokenizer))

    def for_models(self, load: Callable[[Any], Other], tokenizer: Any = None) -> Self:
        return replace(self, choose=self.chooser.for_models(load, tokenizer))

    def alone(self) -> Self:
        return replace(self, choose=self.chooser.alone())

    def over(self, model: nn.Module) -> nn.Module:
        return self.chooser.over(model)

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        chooser = self.chooser
        out = chooser.generate(model, ids, limits)
        if isinstance(self.by, Identity):
            return out
        asked = [i for i, one in enumerate(out) if kind_of(self._text(one.ids)) not in ("refusal", "partial")]
        there = [self._rewritten(ids[i], self.by.forward) for i in asked]
        window = window_of(chooser.over(model))
        if window is not None and (long := max(map(len, there), default=0)) + limits.max_new_tokens > window:
            raise Refusal(
                f"conjugate: a prompt of {long} tokens in other signs and {limits.max_new_tokens} new ones do not fit the "
                f"window of {window}: shorten the prompts, or choose a transform that needs fewer tokens"
            )
        found = chooser.generate(model, there, self._limits(limits)) if asked else []
        for i, one in zip(asked, found, strict=True):
            out[i] = replace(one, ids=self._back(one.ids))
        return out

    def _limits(self, limits: Limits) -> Limits:
        """The same ends, looked for in what the answer will be."""
        if not isinstance(limits, TextLimits) or limits.finished is None:
            return limits
        finished = limits.finished

        def ended(said: list[int]) -> bool:
            back = self._back(said)
            return bool(back) and finished(back)

        return replace(limits, finished=ended)

    def _back(self, ids: Sequence[int]) -> list[int]:
        return self._rewritten(ids, self.by.inverse)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._known.decode(ids, skip_special_tokens=True))

    def _rewritten(self, ids: Sequence[int], by: Callable[[str], str]) -> list[int]:
        """Every piece between special tokens in other signs; the ids of a piece that does not change are kept."""
        out: list[int] = []
        special = frozenset(self._known.all_special_ids)
        for kept, piece in groupby(ids, key=special.__contains__):
            some = list(piece)
            text = str(self._known.decode(some))
            changed = text if kept else by(text)
            out += some if changed == text else self._known(changed, add_special_tokens=False)["input_ids"]
        return out

    @property
    def _known(self) -> Any:
        if self.tokenizer is None:
            raise LuthierError(
                f"conjugate: {type(self.by).__name__} rewrites text and needs the tokenizer: ask a subject"
            )
        return self.tokenizer
