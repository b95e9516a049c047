"""Rules: a base model that answers and stops, by a hand-written model of what answers look like; nothing is trained.

    p(w | x, y) ~ p_base(w | x, y) p_rule(w | x, y),    p_rule = softmax(r)                                          r (V,)

    r_w =   strength min(t / length, 1)   where w ends a row
          + changes_w
          - diversity                     where w occurs in y or in the last user turn of x, and does not end a row

    t            tokens of the answer so far, len(y): neither the prompt nor its padding counts
    after        beyond `length` the pull towards the end stays (hold) or is gone (drop)
    changes      text of a token -> what is added to its score. "I" and " I" are two tokens; spaced: true writes both for one
    allow_multi  "first": a text of several tokens stands for its first one; else it is an error
    diversity    taken once, however often the token occurred
    user         text that opens a user's turn; left out: what the chat template writes there. Counted is what follows the last
                 one, the assistant's mark included; the whole prompt where it has none
    choose       greedy or nucleus: how a token is chosen from p
    ids, end_ids, openings   the same for use without a tokenizer: changes by token id, what ends a row beside the stop tokens,
                 token sequences that open a user's turn. A subject's tokenizer makes them
Start:      with strength 0, no changes and diversity 0 the scores are the model's, to the last bit.
Cost:       the base's, and a vector of V a row and step.
Paper:      Hewitt et al., 2024, "Instruction Following without Instruction Tuning", arXiv:2409.14254, section 5; the default
            table is the paper's, for Llama-2's vocabulary.
Departures: the pull stays after `length` tokens, where the public code lets it go (after: drop). Texts are looked up in the
            tokenizer at hand. The normalisers of both models are left out, as they drop out of p. `logp`, and scorers of given
            texts, are of the base alone: p depends on how much was said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from luthier.core.method import Decoder, Generation, Limits, LuthierError
from luthier.core.subject import at_rest
from luthier.decoding._family import Row, StepDecoder, chooser_of, decode, stream

CHANGES = {
    "<": -4.0, " <": -4.0, "|": -4.0, " I": -5.0, "I": -5.0, " We": -3.0, "What": -5.0, " should": -6.0, " *": 1.0, " -": 1.0,
    "   ": 1.0, " #": 1.0, " ##": 1.0, "\n": 1.0, "!": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Rules(Decoder):
    paper: ClassVar[str] = "arXiv:2409.14254"
    cards: ClassVar[tuple[int, ...]] = (31,)
    exact: ClassVar[bool] = False

    strength: float = 15.0
    length: int = 250
    after: Literal["hold", "drop"] = "hold"
    changes: dict[str, float] = field(default_factory=lambda: dict(CHANGES))
    spaced: bool = False
    allow_multi: Literal["", "first"] = ""
    diversity: float = 1.5
    user: str = ""
    choose: Any = "greedy"
    ids: dict[int, float] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    openings: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise LuthierError(
                f"rules: length is {self.length}: give the tokens, 1 or more, after which the pull is full"
            )
        self.chooser  # noqa: B018  mistakes in its options show now

    @classmethod
    def example(cls) -> Self:
        return cls(strength=4.0, length=4, changes={}, ids={11: -2.0, 25: 1.5}, diversity=1.0, openings=((9, 41),))

    @property
    def chooser(self) -> StepDecoder:
        found = chooser_of(self.choose)
        if not isinstance(found, StepDecoder):
            raise LuthierError(f"rules: '{found.name}' does not choose token by token: choose by greedy or nucleus")
        return found

    def alone(self) -> Decoder:
        return self.chooser

    def for_tokenizer(self, tokenizer: Any) -> Self:
        ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        ids = self.ids if not self.changes else self._by_id(tokenizer)
        return replace(
            self, ids=ids, end_ids=ends, openings=opening_ids(self.user or user_mark(tokenizer), tokenizer),
            choose=self.chooser.for_tokenizer(tokenizer),
        )  # fmt: skip

    def _by_id(self, tokenizer: Any) -> dict[int, float]:
        out: dict[int, float] = {}
        for text, change in self.changes.items():
            for one in dict.fromkeys([text, f" {text}"] if self.spaced and not text[:1].isspace() else [text]):
                token = token_of(one, tokenizer, self.allow_multi == "first")
                if out.setdefault(token, change) != change:
                    raise LuthierError(
                        f"rules: {one!r} is a token that another text of `changes` changes otherwise: keep one"
                    )
        return out

    # ------------------------------------------------------------------------------------------------ scores

    def counted(self, prompt: Sequence[int]) -> Sequence[int]:
        """What diversity looks at in a prompt: what follows the last opening of a user's turn, all of it where there is none."""
        ends = [
            at + len(mark)
            for mark in self.openings
            for at in range(len(prompt) - len(mark) + 1)
            if tuple(prompt[at : at + len(mark)]) == mark
        ]
        return prompt[max(ends, default=0) :]

    def rule_scores(
        self, counted: Sequence[Sequence[int]], said: Sequence[Sequence[int]], limits: Limits, like: Tensor
    ) -> Tensor:
        """r (B, V) of rows that have said so much, in the type and on the device of `like` (..., V)."""
        size = like.shape[-1]
        if self.changes and not self.ids:
            raise LuthierError("rules: changes are texts: ask a subject, whose tokenizer knows their ids, or give ids")
        if wrong := [i for i in self.ids if not 0 <= i < size]:
            raise LuthierError(f"rules: token {wrong[0]} is none of the model's {size}: ids belong to one tokenizer")
        ends = sorted({i for i in (*self.end_ids, *limits.stop_ids) if i < size})
        r = like.new_zeros(len(said), size)
        r[:, list(self.ids)] = like.new_tensor(list(self.ids.values()))
        for row, (asked, answer) in enumerate(zip(counted, said, strict=True)):
            r[row, sorted({i for i in (*asked, *answer) if i < size}.difference(ends))] -= self.diversity
        r[:, ends] += like.new_tensor([[self.pull(len(answer))] for answer in said])
        return r

    def pull(self, t: int) -> float:
        """What is added to the end tokens after t tokens of an answer."""
        if t < self.length:
            return self.strength * t / self.length
        return self.strength if self.after == "hold" else 0.0

    def shaped(self, scores: Tensor, prompt: Sequence[int], said: Sequence[int], limits: Limits) -> Tensor:
        return scores + self.rule_scores([self.counted(prompt)], [said], limits, scores)[0]

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        counted = [self.counted(prompt) for prompt in ids]

        def shape(scores: Tensor, rows: Sequence[Row]) -> Tensor:
            return scores + self.rule_scores(
                [counted[row.index] for row in rows], [row.ids for row in rows], limits, scores
            )

        with at_rest(model):
            return decode(stream(model, limits.pad_id), ids, limits, self.chooser.rule, shape)


# --------------------------------------------------------------------------------------------------------- tokens


def spelled(text: str, tokenizer: Any) -> list[int]:
    """Ids of a text as it stands after a line's end: in front of a text's first word some tokenizers put a blank."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    line, whole = ids("\n"), ids(f"\n{text}")
    return whole[len(line) :] if whole[: len(line)] == line else ids(text)


def token_of(text: str, tokenizer: Any, first: bool = False) -> int:
    """The token that is `text`, blanks in front included; with `first` the first of several."""
    found = spelled(text, tokenizer)
    if not found or found[0] == tokenizer.unk_token_id:
        raise LuthierError(f"rules: this tokenizer has no token for {text!r}: take it out of `changes`")
    if len(found) > 1 and not first:
        raise LuthierError(
            f"rules: {text!r} is {len(found)} tokens for this tokenizer: take it out of `changes`, or set allow_multi: first, "
            "which changes the first of them"
        )
    return found[0]


def user_mark(tokenizer: Any) -> str:
    """What the chat template writes before what a user says: the same before a first and a second turn. Empty: no template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    first, second = "luthierfirst", "luthiersecond"
    turns = [("user", first), ("assistant", "answer"), ("user", second)]
    text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
    before, _, rest = text.partition(first)
    again = rest.partition(second)[0]
    same = next((n for n in range(min(len(before), len(again)), 0, -1) if before[-n:] == again[-n:]), 0)
    return before[len(before) - same :]


def opening_ids(text: str, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Token sequences that the mark of a user's turn may be: first in a text or after a line, with its own line's end or not."""
    forms = []
    for mark in filter(None, (text, text.strip())):
        forms += [tuple(tokenizer(mark, add_special_tokens=False)["input_ids"]), tuple(spelled(mark, tokenizer))]
    return tuple(dict.fromkeys(filter(None, forms)))
