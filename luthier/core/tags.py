"""Classes of words and of steps, and the tokens that bear them: for rows that are trained on and for items that are asked.

The whole text is tokenised at once, as a model meets it in use, and spans of characters are carried over by offsets.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal

from luthier.core.batch import IGNORED
from luthier.core.method import LuthierError, RowError

TAG_COLUMNS = ("ner_tags", "pos_tags", "chunk_tags", "tags")
WRONG, RIGHT = "wrong", "right"
Span = tuple[int, int]
"""First character, the one after the last."""
Bears = Literal["begin", "end", "all"]
"""The token of a span that has its class: the first one in it, the last, or each."""


def tag_column(row: dict[str, Any], told: str = "auto") -> str:
    """The column of a row that holds the classes of its words. Raises RowError where none does, or several may."""
    found = [c for c in TAG_COLUMNS if row.get(c) is not None] if told == "auto" else [told]
    if len(found) > 1:
        raise RowError(f"{' and '.join(found)} both hold tags: say tag_column: {found[0]}")
    if not found or row.get(found[0]) is None:
        raise RowError(f"no '{(found or TAG_COLUMNS)[0]}'")
    return found[0]


def words_and_tags(row: dict[str, Any], column: str = "auto") -> tuple[list[str], list[Any]]:
    """The words of a row and the tag of each; None where a word has none (null, -100)."""
    words, column = _listed(row.get("tokens"), "tokens"), tag_column(row, column)
    tags = _listed(row[column], column)
    if len(words) != len(tags):
        raise RowError(f"{len(words)} tokens and {len(tags)} {column}: there must be one for each")
    if not words or not all(isinstance(w, str) for w in words):
        raise RowError("'tokens' is not a list of words")
    return words, [None if t is None or t == IGNORED else t for t in tags]


def text_of_words(words: Sequence[str]) -> tuple[str, list[Span]]:
    """The words joined by single spaces, and where each stands."""
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), spans


def steps_and_labels(row: dict[str, Any]) -> tuple[list[str], list[bool]]:
    """The steps of a row and whether each is right."""
    steps, labels = _listed(row.get("completions"), "completions"), _listed(row.get("labels"), "labels")
    if len(steps) != len(labels) or not steps:
        raise RowError(
            f"{len(steps)} completions and {len(labels)} labels: there must be one for each, and one at least"
        )
    if not all(isinstance(s, str) for s in steps):
        raise RowError("'completions' is not a list of texts")
    if not all(label in (0, 1) for label in labels):
        raise RowError("'labels' must be true or false for each step")
    return steps, [bool(label) for label in labels]


def text_of_steps(prompt: Any, steps: Sequence[str], separator: str) -> tuple[str, list[Span]]:
    """Prompt and steps as one text, a separator behind every step, and where each stands with its separator."""
    if not isinstance(prompt, str):
        raise RowError("no 'prompt'" if prompt is None else "'prompt' is not text")
    text, spans = prompt, []
    for step in steps:
        spans.append((len(text), len(text) + len(step) + len(separator)))
        text += step + separator
    return text, spans


def tokens_of(
    text: str, spans: Sequence[Span], bears: Bears, tokenizer: Any, limit: int | None, keep_end: bool = False
) -> tuple[Any, list[list[int]]]:
    """What the tokenizer makes of a text, cut to `limit` tokens, and the tokens that bear the class of each span."""
    if not tokenizer.is_fast:
        raise LuthierError(
            "classes of words or steps need a fast tokenizer, which tells the characters of each token; "
            f"{type(tokenizer).__name__} is none"
        )
    before, tokenizer.truncation_side = tokenizer.truncation_side, "left" if keep_end else "right"
    try:
        found = tokenizer(
            text, truncation=limit is not None, max_length=limit, return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
    finally:
        tokenizer.truncation_side = before
    return found, places(found["offset_mapping"], found["special_tokens_mask"], spans, bears)


def places(offsets: Sequence[Span], special: Sequence[int], spans: Sequence[Span], bears: Bears) -> list[list[int]]:
    """The tokens that bear the class of each span; none where a span has no token of its own.

    A token belongs to the span that its last character lies in: a space before a word may be part of the word's token.
    """
    starts = [first for first, _ in spans]
    tokens: list[list[int]] = [[] for _ in spans]
    for t, ((first, stop), added) in enumerate(zip(offsets, special)):
        if added or stop <= first:
            continue
        k = bisect_right(starts, stop - 1) - 1
        if k >= 0 and stop <= spans[k][1]:
            tokens[k].append(t)
    return [{"begin": row[:1], "end": row[-1:], "all": row}[bears] for row in tokens]


def _listed(value: Any, name: str) -> list[Any]:
    """A list, or a list that csv holds as JSON text."""
    if isinstance(value, str) and value[:1] == "[":
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f"'{name}' is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, list):
        raise RowError(f"no '{name}'" if value is None else f"'{name}' is not a list")
    return value
