"""Constrained decoding: the answer matches a regular expression, or is JSON of a schema, whatever the model says.

    state(said)   = the state of the expression's automaton after the bytes of `said`
    allowed(said) = {v : far(state(said v)) <= tokens that are left after v}  + the stop tokens, where far(state(said)) = 0
    z'            = z on allowed tokens, -inf elsewhere;      the next token is chosen from z'                    z (B, V)

    regex        the expression, of the whole answer: no anchors, look-around or references to groups
    json_schema  in its place: a schema, as a mapping, as JSON text or as the name of a file
    choose       greedy, nucleus, ...: how a token is chosen from z'
    tokens       bytes of every token id, for use without a tokenizer
    far          fewest tokens from a state to a complete answer
Tokens that lead nowhere are not allowed, nor such as leave no room: every answer is complete within max_new_tokens. Where
that is too little for the shortest one, or the tokenizer can write none, it is refused. Where nothing may follow, an answer
ends even without a stop token. A token is the text that it adds after another one: a blank that some tokenizers drop at the
start of a text counts. `logp` of a generation is the model's own; log-probabilities of given texts are not constrained.
Cost:       V numbers masked per step and row; once per expression and vocabulary the automaton (outlines-core).
Paper:      Willard and Louf, 2023, "Efficient Guided Generation for Large Language Models", arXiv:2307.09702, algorithm 4.
Departures: the paper does not look at the room that is left: what it cuts at max_new_tokens need not match.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.spelling import spelling
from luthier.core.subject import TextLimits, at_rest, plain_model
from luthier.decoding._family import Row, StepDecoder, chooser_of, decode, stream, text_ended

_END = "\U0010ffff"
"""Stands behind every answer as a token of its own, which no model has. What outlines-core 0.2.14 says of final states is
not to be trusted (of `a(xa)*` it forgets that x may follow a): so the only final state is the one behind the end."""


class _Automaton:
    """An expression over the tokens of a vocabulary. `far[state]` is missing where no complete answer can be reached."""

    def __init__(self, index: Any, size: int):
        """`index` is of the expression and `_END`, which is token `size`; what comes after it is no token."""
        self.index, self.size = index, size
        self.start: int = index.get_initial_state()
        self.far = self._distances()
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def after(self, state: int | None, token: int) -> int | None:
        found: int | None = None if state is None else self.index.get_next_state(state, token)
        return found

    def read(self, said: Sequence[int]) -> int | None:
        state: int | None = self.start
        for token in said:
            state = self.after(state, token)
        return state

    def may(self, state: int | None, room: int | None, ends: Sequence[int]) -> Tensor:
        """Tokens (k,) that may follow where `room` of them are left (None: any number)."""
        if state is None:
            return torch.zeros(0, dtype=torch.long)
        if state not in self._known:
            pairs = sorted((t, self.far[s]) for t, s in self._arcs(state) if s in self.far)
            tokens, then = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
            self._known[state] = tokens, then
        tokens, then = self._known[state]
        found = tokens if room is None else tokens[then < room]
        return torch.cat([found, torch.tensor(ends, dtype=torch.long)]) if self.far.get(state) == 0 else found

    def _arcs(self, state: int) -> list[tuple[int, int]]:
        """(token, next state)."""
        tokens = self.index.get_allowed_tokens(state)
        return [(t, self.index.get_next_state(state, t)) for t in tokens if t < self.size]

    def _complete(self, state: int) -> bool:
        behind = self.index.get_next_state(state, self.size)
        return behind is not None and self.index.is_final_state(behind)

    def _distances(self) -> dict[int, int]:
        before: dict[int, set[int]] = {self.start: set()}  # state -> states that lead to it
        reached = [self.start]
        for state in reached:  # it grows
            for s in {s for _, s in self._arcs(state)}:
                if s not in before:
                    before[s] = set()
                    reached.append(s)
                before[s].add(state)
        nearest = [s for s in reached if self._complete(s)]
        far = dict.fromkeys(nearest, 0)
        for state in nearest:  # it grows as well
            for s in before[state] - far.keys():
                far[s] = far[state] + 1
                nearest.append(s)
        return far


@lru_cache(maxsize=16)
def _automaton(expression: str, tokens: tuple[bytes, ...], ends: tuple[int, ...] = ()) -> _Automaton:
    """`ends` are stop tokens, which are no text."""
    core, size = _library(), len(tokens)
    bytes_ = {bytes([b]): [size + 1 + b] for b in range(256)}  # no tokens: the library wants a way out of every state
    words = {**bytes_, _END.encode(): [size]}
    for i, text in enumerate(tokens):
        if text and i not in ends:
            words[text] = [*words.get(text, ()), i]
    try:
        for told, known in ((expression, bytes_), (f"(?:{expression}){_END}", words)):
            index = core.Index(told, core.Vocabulary(size + 257, known))
    except ValueError:
        raise LuthierError(
            f"constrained: {_short(expression)} cannot be used: give a regular expression of the whole answer, without "
            "anchors, look-around and references to groups"
        ) from None
    found = _Automaton(index, size)
    if size and found.start not in found.far:
        raise LuthierError(f"constrained: the tokens can write no answer of {_short(expression)}")
    return found


@lru_cache(maxsize=16)
def _of_schema(schema: str) -> str:
    """The expression of a schema given as JSON text."""
    try:
        expression: str = _library().json_schema.build_regex_from_schema(schema)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LuthierError(f"constrained: json_schema {_short(schema)} cannot be used: {reason}") from None
    return expression


def _library() -> Any:
    if importlib.util.find_spec("outlines_core") is None:
        raise LuthierError("constrained needs the package outlines-core: pip install 'luthier[constrained]'")
    import outlines_core

    return outlines_core


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 60 else f"{expression[:57]}...")


@dataclass(frozen=True)
class Constrained(Decoder):
    paper: ClassVar[str] = "arXiv:2307.09702"

    regex: str = ""
    json_schema: Any = None
    choose: Any = "greedy"
    tokens: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.regex) == (self.json_schema is not None):
            raise LuthierError("constrained: give either decoding.regex or decoding.json_schema")
        _automaton(self.expression, ())  # mistakes in it show now
        if not isinstance(self.chooser, StepDecoder):
            raise LuthierError(
                f"constrained chooses by greedy, nucleus or another rule of single tokens, not by {self.chooser.name}: a sum "
                "of models takes constrained as its own `choose`"
            )

    @classmethod
    def example(cls) -> Self:
        letters = [bytes([b]) for b in b"abcdefghijklmnopqrstuvwxyz0123456789"]
        pairs = [bytes([a, b]) for a in b"abcd" for b in b"0123456789abcde"]
        return cls(regex="([a-z][a-z0-9]*)?", tokens=(*letters, *pairs))

    @property
    def expression(self) -> str:
        if self.regex:
            return self.regex
        if isinstance(self.json_schema, Mapping):
            return _of_schema(json.dumps(self.json_schema))
        text = str(self.json_schema)
        if text.lstrip().startswith("{"):
            return _of_schema(text)
        if not Path(text).is_file():
            raise LuthierError(f"constrained: json_schema '{text}' is no file: give a schema, or the name of its file")
        return _of_schema(Path(text).read_text(encoding="utf-8"))

    @property
    def chooser(self) -> Decoder:
        return chooser_of(self.choose)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        return self if self.tokens else replace(self, tokens=spelling(tokenizer))

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int]:
        found = self._automaton(limits)
        return sorted(found.may(found.read(said), limits.max_new_tokens - len(said), limits.stop_ids).tolist())

    def _automaton(self, limits: Limits, width: int | None = None) -> _Automaton:
        if not self.tokens:
            raise LuthierError("constrained: the bytes of the tokens are not known: ask a subject, or give `tokens`")
        return _automaton(self.expression, self.tokens[:width], limits.stop_ids)

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        found = self._automaton(limits, _width(model))
        if 0 < limits.max_new_tokens < found.far[found.start]:
            raise Refusal(
                f"constrained: the shortest answer of {_short(self.expression)} takes {found.far[found.start]} tokens, "
                f"max_new_tokens is {limits.max_new_tokens}: give more"
            )
        states: dict[int, int | None] = {}

        def shape(scores: Tensor, rows: Sequence[Row]) -> Tensor:
            out = torch.full_like(scores, float("-inf"))
            for b, row in enumerate(rows):
                state = found.after(states[row.index], row.ids[-1]) if row.ids else found.start
                states[row.index] = state
                may = found.may(state, limits.max_new_tokens - len(row.ids), limits.stop_ids).to(scores.device)
                out[b, may] = scores[b, may]
            if bool((out.amax(-1) == float("-inf")).any()):
                raise Refusal(
                    f"constrained: every token that {_short(self.expression)} allows is ruled out by the model or the sum of "
                    "models: choose from all their tokens"
                )
            return out

        def finished(said: list[int]) -> bool:
            """For rows that have no stop token to say."""
            return text_ended(said, limits) or (not limits.stop_ids and not len(found.may(found.read(said), None, ())))

        told = TextLimits(limits.max_new_tokens, limits.stop_ids, limits.pad_id, limits.seed, finished)
        with at_rest(model):
            return decode(stream(model, limits.pad_id), ids, told, self.chooser.rule, shape)  # type: ignore[attr-defined]


def _width(model: nn.Module) -> int:
    """How many scores a model, or a sum of them, has."""
    scores: int = plain_model(model).config.vocab_size
    return min(getattr(model, "size", None) or scores, scores)
