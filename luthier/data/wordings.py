"""Wordings: one question asked in several ways, with one answer.

in      prompts (a list of texts, or of lists of messages; the first is the reference), completion; optional tools
out     GroupExample: what the prompts have in common at their beginning, then each prompt's rest with the answer
trained the answer after every prompt, its end token included; never a prompt

A row longer than max_length (its longest prompt with the answer) is rejected: cut wordings would not mean the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.batch import GroupExample
from luthier.core.method import RowError
from luthier.data._family import Encoded, GroupRows, Rendered, Tokens, common, needed


@dataclass(frozen=True)
class Wordings(GroupRows):
    paper: ClassVar[str] = "arXiv:2306.11270"
    cards: ClassVar[tuple[int, ...]] = (35,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",), ("completion",))
    optional: ClassVar[tuple[str, ...]] = ("tools",)

    def group(self, row: dict[str, Any]) -> tuple[Any, list[Any], list[float]]:
        return needed(row, "prompt"), [needed(row, "completion")], [1.0]

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        prompts = needed(row, "prompts")
        if isinstance(prompts, str):
            try:
                prompts = json.loads(prompts)
            except json.JSONDecodeError as error:
                raise RowError(f"'prompts' is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(prompts, list) or not prompts:
            raise RowError("'prompts' is not a list of wordings")
        return [text for p in prompts for text in super(Wordings, self).texts({**row, "prompt": p}, tokenizer)]

    def build(self, row: dict[str, Any], index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        longest = max(len(t.ids) for t in tokens)
        if not self.fits(longest):
            raise RowError(f"{longest} tokens, more than max_length {self.max_length}: raise it")
        if any(True not in t.counts for t in tokens):
            raise RowError("the completion has no token to train on")
        firsts = [t.counts.index(True) for t in tokens]
        if min(firsts) == 0:
            raise RowError("a prompt is empty: the completion would have nothing to be predicted from")
        shared = min(common([t.ids for t in tokens]), *firsts, firsts[0])
        stops = [len(t.counts) - t.counts[::-1].index(True) for t in tokens]
        answers = [t.ids[shared:stop] for t, stop in zip(tokens, stops, strict=True)]
        marks = set().union(*(t.marks for t in tokens))
        return Encoded(GroupExample(index, tokens[0].ids[:shared], answers, given=[f - shared for f in firsts]), marks)
