"""Text with trained characters to tokens with trained marks, and cutting to a length.

The whole text is tokenised at once, as the model will meet it, and characters are carried over by offsets. A token
counts as trained when it covers at least one trained character. Where byte-pair merging joins the end of a prompt and
the beginning of an answer, that token counts: the answer is always trained whole. Such rows are counted in the report.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from luthier.data._templates import Rendered, Span

_SHARED = "a token holds trained and untrained text"
_START, _END = itemgetter(0), itemgetter(1)


@dataclass(slots=True)
class Tokens:
    """Token ids, which of them are trained, and what happened on the way."""

    ids: list[int]
    counts: list[bool]
    marks: set[str] = field(default_factory=set)


def tokenise(texts: Sequence[Rendered], tokenizer: Any) -> list[Tokens]:
    """All texts in at most two calls of the tokenizer: those that take its special tokens and those that do not."""
    out: list[Tokens | None] = [None] * len(texts)
    for specials in (False, True):
        chosen = [i for i, t in enumerate(texts) if t.specials == specials]
        for i, tokens in zip(chosen, _batch([texts[i] for i in chosen], tokenizer, specials)):
            out[i] = tokens
    return out  # type: ignore[return-value]


def whole(
    texts: Sequence[str | tuple[str, str]], tokenizer: Any, limit: int | None, keep_end: bool
) -> list[tuple[list[int], list[int] | None, int]]:
    """Ids, sentence indices and the length before cutting. Cutting is the tokenizer's: its special tokens stay."""
    if not texts:
        return []
    found = _call(tokenizer, texts, None, "right")
    lengths = [len(ids) for ids in found["input_ids"]]
    if limit is not None and max(lengths) > limit:
        found = _call(tokenizer, texts, limit, "left" if keep_end else "right")
    types = found.get("token_type_ids") or [None] * len(texts)
    return list(zip(found["input_ids"], types, lengths))


def _call(tokenizer: Any, texts: Sequence[Any], limit: int | None, side: str) -> Any:
    before, tokenizer.truncation_side = tokenizer.truncation_side, side
    try:
        return tokenizer(list(texts), truncation=limit is not None, max_length=limit, verbose=False)
    finally:
        tokenizer.truncation_side = before


def _batch(texts: Sequence[Rendered], tokenizer: Any, specials: bool) -> list[Tokens]:
    if not texts:
        return []
    if not tokenizer.is_fast:
        return [_slow(t, tokenizer, specials) for t in texts]
    encoded = tokenizer(
        [t.text for t in texts], add_special_tokens=specials, return_offsets_mapping=True, verbose=False,
        return_special_tokens_mask=specials, return_attention_mask=False, return_token_type_ids=False,
    )  # fmt: skip
    masks = encoded["special_tokens_mask"] if specials else [()] * len(texts)
    return [
        _one(t, ids, offsets, added, tokenizer)
        for t, ids, offsets, added in zip(texts, encoded["input_ids"], encoded["offset_mapping"], masks)
    ]


def _one(text: Rendered, ids: list[int], offsets: list[Span], added: Sequence[int], tokenizer: Any) -> Tokens:
    lead = next((i for i, a in enumerate(added) if not a), len(added))
    tail = next((i for i, a in enumerate(reversed(added)) if not a), 0)
    inner = offsets[lead : len(offsets) - tail] if added else offsets
    counts = [False] * len(ids)
    out = Tokens(ids, counts, set(text.marks))
    for span in text.trained:
        first, stop = token_range(inner, span)
        counts[lead + first : lead + stop] = [True] * (stop - first)
        ends_inside = first < stop and inner[stop - 1][0] < span[1] < inner[stop - 1][1]
        if first < stop and (ends_inside or _straddles(inner, first, span[0], ids[lead + first], tokenizer)):
            out.marks.add(_SHARED)
    return _closed(out, text, tail, tokenizer.eos_token_id)


def _straddles(offsets: Sequence[Span], first: int, start: int, token: int, tokenizer: Any) -> bool:
    """Whether the first trained token holds characters from before the answer."""
    begin, end = offsets[first]
    if begin < start < end:
        return True
    before = offsets[first - 1][1] if first else 0
    if not before < start <= begin:
        return False
    return tokenizer.convert_ids_to_tokens(token)[:1] in ("Ġ", "▁")  # its space was trimmed from the offset


def _closed(out: Tokens, text: Rendered, tail: int, eos: int | None) -> Tokens:
    """The end token of plain text: what the tokenizer added counts, and one is added where it added none."""
    if not text.close:
        return out
    out.counts[len(out.counts) - tail :] = [True] * tail
    if eos is None:
        out.marks.add("tokenizer has no end token")
    elif not out.ids or out.ids[-1] != eos:
        out.ids.append(eos)
        out.counts.append(True)
    else:
        out.counts[-1] = True
    return out


def token_range(offsets: Sequence[Span], span: Span) -> tuple[int, int]:
    """First token that covers a character of the span, and the first one after the last such token."""
    start, end = span
    first = bisect_right(offsets, start, key=_END) if start else 0  # a trimmed first token ends at 0
    stop = bisect_left(offsets, end, key=_START)
    while stop < len(offsets) and offsets[stop][0] == offsets[stop][1] and offsets[stop - 1][1] < end:
        stop += 1  # a token of spaces whose offset the tokenizer trimmed to nothing
    return first, max(first, stop)


def _slow(text: Rendered, tokenizer: Any, specials: bool) -> Tokens:
    """Without offsets: a boundary lies where the tokens of the text up to it stop being those of the whole."""
    whole = tokenizer.encode(text.text, add_special_tokens=False)
    out = Tokens(list(whole), [False] * len(whole), set(text.marks))

    def common(end: int) -> tuple[int, bool]:
        part = tokenizer.encode(text.text[:end], add_special_tokens=False)
        shared = next((i for i, (a, b) in enumerate(zip(part, whole)) if a != b), min(len(part), len(whole)))
        return shared, shared == len(part)

    for start, end in text.trained:
        first, clean = common(start)
        stop, whole_stop = (len(whole), True) if end == len(text.text) else common(end)
        stop = stop if whole_stop else stop + 1
        out.counts[first:stop] = [True] * (stop - first)
        if not clean:
            out.marks.add(_SHARED)
    tail = 0
    if specials:
        out.ids = tokenizer.build_inputs_with_special_tokens(whole)
        lead = next((i for i in range(len(out.ids)) if out.ids[i : i + len(whole)] == whole), 0)
        tail = len(out.ids) - lead - len(whole)
        out.counts = [False] * lead + out.counts + [False] * tail
    return _closed(out, text, tail, tokenizer.eos_token_id)


def cut(tokens: Tokens, max_length: int | None, mode: str, bos: int | None) -> Tokens:
    """At most `max_length` tokens. With keep_end, a leading begin token stays."""
    n = len(tokens.ids)
    if max_length is None or n <= max_length:
        return tokens
    if mode == "keep_start":
        kept = range(max_length)
    elif tokens.ids[0] == bos and not tokens.counts[0] and max_length > 1:
        kept = [0, *range(n - max_length + 1, n)]  # type: ignore[assignment]
    else:
        kept = range(n - max_length, n)
    out = Tokens([tokens.ids[i] for i in kept], [tokens.counts[i] for i in kept], tokens.marks | {"cut"})
    if sum(out.counts) < sum(tokens.counts):
        out.marks.add("answer cut")
    return out
