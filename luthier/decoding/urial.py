"""URIAL: a base model as an assistant, by one constant prompt of a few examples that show how answers look.

    y ~ p( . | s, (q_1, a_1), ..., (q_K, a_K), q )        the same s and (q_k, a_k) whatever q is

    examples   a layout file (core/layout.py): instructions s, how questions and answers are set out, and the examples. By
               name, one that comes with luthier ("assistant"), or a path to your own; in Python also a Layout
    k          K, how many of its examples, the first ones; 0: instructions alone
    refusals   False: without the examples that decline to answer
    choose     how tokens are chosen: any decoder, with its options
    repetition_penalty   above 1 what an answer has said becomes less likely; the prompt is not counted
    read_once  the constant part is read once and its keys and values are used for all questions: the same answers, sooner
A conversation is laid out turn by turn, without a chat template. Answers end at the layout's stop strings, and lose the
marks that close them. A prompt that does not fit the window with its answer is an error, never cut.
Cost:       the constant part once, then a forward of each question's own tokens and of every token of an answer.
Paper:      Lin et al., 2024, "The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning",
            arXiv:2312.01552, section 3.
Departures: instructions and examples are our own. Marks of the layout are taken off the end of an answer only, and only
            where an answer does not need them itself; the penalty leaves the prompt out, which generation code often counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import nn

from luthier.core.layout import Layout, layout
from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.mixture import Other
from luthier.core.subject import at_rest
from luthier.decoding._family import StepDecoder, chooser_of, decode, penalised, primed, stream


@dataclass(frozen=True)
class Urial(Decoder):
    """`constant` are the ids of what all prompts begin with, for use without a tokenizer; a subject's tokenizer makes them."""

    paper: ClassVar[str] = "arXiv:2312.01552"
    cards: ClassVar[tuple[int, ...]] = (6,)

    examples: Any = "assistant"
    k: int = 3
    refusals: bool = True
    choose: Any = "greedy"
    repetition_penalty: float = 1.0
    read_once: bool = True
    constant: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.k < 0:
            raise LuthierError(f"urial: k is {self.k}: give 0 (instructions alone) or more")
        if not self.repetition_penalty > 0:
            raise LuthierError(f"urial: repetition_penalty is {self.repetition_penalty}: give 1 (none) or more")
        self.layout  # noqa: B018  mistakes in its file show now

    @classmethod
    def example(cls) -> Self:
        return cls(constant=(11, 25))

    @property
    def chooser(self) -> Decoder:
        return chooser_of(self.choose)

    @property
    def layout(self) -> Layout:
        return layout(self.examples, self.k, self.refusals)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        ids = tuple(tokenizer(self.layout.constant)["input_ids"])
        return replace(self, constant=ids, choose=self.chooser.for_tokenizer(tokenizer))

    def for_models(self, load: Callable[[Any], Other], tokenizer: Any = None) -> Self:
        return replace(self, choose=self.chooser.for_models(load, tokenizer))

    def over(self, model: nn.Module) -> nn.Module:
        return self.chooser.over(model)

    def alone(self) -> Decoder:
        return replace(self, choose=self.chooser.alone())

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int] | None:
        return self.chooser.allowed(said, limits)

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        chooser, model = self.chooser, primed(model, self.constant) if self.read_once else model
        if self.repetition_penalty == 1:
            return chooser.generate(model, ids, limits)
        if not isinstance(chooser, StepDecoder):
            raise Refusal(f"urial: a repetition penalty goes with greedy and nucleus, not with {chooser.name}")
        with at_rest(model):
            return decode(stream(model, limits.pad_id), ids, limits, chooser.rule, penalised(self.repetition_penalty))

    def candidates(
        self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits, k: int
    ) -> list[list[Generation]]:
        if self.repetition_penalty != 1:
            return super().candidates(model, ids, limits, k)
        return self.chooser.candidates(primed(model, self.constant) if self.read_once else model, ids, limits, k)
