"""Trie: generation that can only write a list of different labels out of a given set.

    y = l_1 SEP l_2 SEP ... l_m STOP        l_i different labels, each a token sequence
    allowed(said) = children, in the trie of labels not yet said, of the node reached since the last SEP
                    + SEP, where a label is complete and another one is left
                    + the stop tokens, where a label is complete

    labels         the label set as texts; a subject's tokenizer makes them `sequences` and `separator_id`
    prefix         stands before every label, so that its tokens are the same at the start and after a separator
    separator      one token that occurs in no label
    sequences      the label set as token ids, for use without a tokenizer;  separator_id  the separator's
    num_beams      K; 1 is greedy
    length_penalty as in beam search;  0 ranks by probability
    score          "model": log p of every token; "allowed": log p among the tokens that may follow, so that a token
                   without alternative costs nothing and long labels are not at a disadvantage
What may follow is a function of what the row has said and of nothing else: beams may be re-ordered, rows in a batch
are rows alone. Where there is a stop token, a label is begun only if max_new_tokens leaves room for it, so that no
label is ever cut. `logp` of a generation is the model's own whatever the score.
Cost:       K rows a prompt; the trie is a few dictionary look-ups a step.
Paper:      Buchner et al., 2023, "Prompt Tuned Embedding Classification for Multi-Label Industry Sector Allocation",
            arXiv:2309.12075, section 3 (trie search), after De Cao et al., 2021, arXiv:2010.00904.
Departures: the paper's trie keeps what was said in the history of its calls, which beams break; labels already said are
            struck out of the trie by their index instead of a copy of the trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from luthier.decoding._beams import BeamDecoder, Limits, LuthierError


@dataclass
class _Node:
    """`below` are the labels whose tokens lead through here, `label` the one that ends here."""

    below: set[int] = field(default_factory=set)
    label: int | None = None
    children: dict[int, _Node] = field(default_factory=dict)


@lru_cache(maxsize=32)
def _planted(sequences: tuple[tuple[int, ...], ...]) -> _Node:
    root = _Node()
    for index, sequence in enumerate(sequences):
        node = root
        node.below.add(index)
        for token in sequence:
            node = node.children.setdefault(token, _Node())
            node.below.add(index)
        node.label = index
    return root


@dataclass(frozen=True)
class Trie(BeamDecoder):
    paper: ClassVar[str] = "arXiv:2309.12075"
    cards: ClassVar[tuple[int, ...]] = (24,)

    labels: tuple[str, ...] = ()
    prefix: str = " "
    separator: str = ";"
    sequences: tuple[tuple[int, ...], ...] = ()
    separator_id: int = -1
    num_beams: int = 1
    length_penalty: float = 1.0
    score: Literal["model", "allowed"] = "model"

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or len(set(self.sequences)) != len(self.sequences):
            raise LuthierError("trie: a label stands twice in the set")
        if any(not s or self.separator_id in s for s in self.sequences):
            raise LuthierError("trie: a label has no tokens, or holds the separator: choose another separator")

    @classmethod
    def example(cls) -> Self:
        return cls(sequences=((11, 25), (11, 25, 30), (12, 7), (64,), (30, 9, 41)), separator_id=50, num_beams=3)

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The label set in the tokenizer's ids, checked against how it reads whole lists."""
        if not self.labels:
            return self

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        separator, sequences = ids(self.separator), tuple(ids(self.prefix + label) for label in self.labels)
        if len(separator) != 1:
            raise LuthierError(f"trie: separator '{self.separator}' is {len(separator)} tokens: choose one that is one")
        for some in (range(len(self.labels)), range(len(self.labels) - 1, -1, -1)):
            whole = ids(self.separator.join(self.prefix + self.labels[i] for i in some))
            parts = [t for i in some for t in (*sequences[i], *separator)][:-1]
            if list(whole) != parts:
                raise LuthierError(
                    f"trie: this tokenizer reads labels in a list otherwise than alone: change prefix '{self.prefix}' "
                    f"or separator '{self.separator}'"
                )
        return replace(self, sequences=sequences, separator_id=separator[0])

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int]:
        root = node = _planted(self.sequences)
        done, depth = set[int](), 0  # labels said already, and tokens of the one that is under way
        for token in said:
            if token == self.separator_id and node.label is not None:
                done.add(node.label)
                node, depth = root, 0
            else:
                node, depth = node.children[token], depth + 1
        longest = max(map(len, self.sequences))
        room = limits.max_new_tokens - len(said) if limits.stop_ids else longest + 1
        found = {token for token, c in node.children.items() if self._fits(c.below - done, depth + room)}
        if node.label is not None and node.label not in done:
            found |= set(limits.stop_ids)
            if self._fits(root.below - done - {node.label}, room - 1):
                found.add(self.separator_id)
        return sorted(found)

    def _fits(self, labels: set[int], room: int) -> bool:
        return any(len(self.sequences[i]) <= room for i in labels)

    def worth(self, logp: Tensor, said: Sequence[Sequence[int]], limits: Limits) -> Tensor:
        if not self.sequences:
            raise LuthierError("trie: no labels: give decoding.labels")
        worth = torch.full_like(logp, float("-inf"))
        for row, beam in enumerate(said):
            may = torch.tensor(self.allowed(beam, limits), dtype=torch.long, device=logp.device)
            values = logp[row, may]
            worth[row, may] = values - values.logsumexp(0) if self.score == "allowed" and len(may) else values
        return worth
