"""What each token of a tokenizer adds to a text, as bytes.

Three ways to write a token: in the byte alphabet (one printable character a byte), as text with byte tokens `<0xE2>` beside
it, and as text alone. The first two are seen by the tokenizer's decoder; what the text of a token is where it follows
another one is asked of the tokenizer itself. Special tokens, which are no part of a text, add nothing.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from luthier.core.method import LuthierError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PROBE = 'a 12, {"b": [0.5, true]}\n- a: yes; no.'


def spelling(tokenizer: Any) -> tuple[bytes, ...]:
    """The bytes of every id, empty for special tokens. Joined, those of a text are the text, up to a first blank."""
    return _spelling(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _spelling(tokenizer: Any, size: int) -> tuple[bytes, ...]:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    kinds = _types(json.loads(decoder.__getstate__())) if decoder is not None else set()
    strings = tokenizer.convert_ids_to_tokens(list(range(size)))
    added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    alphabet = _alphabet() if "ByteLevel" in kinds else {}
    out = []
    for i, string in enumerate(strings):
        if string is None or i in special:
            out.append(b"")
        elif i in added:
            out.append(added[i].encode())
        elif alphabet and all(c in alphabet for c in string):
            out.append(bytes(alphabet[c] for c in string))
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(string)):
            out.append(bytes([int(byte[1], 16)]))
        else:
            out.append(_after_another(tokenizer, i))
    _check(tokenizer, out)
    return tuple(out)


def _after_another(tokenizer: Any, token: int) -> bytes:
    """What a token adds to a text that ends with the token itself."""
    once, twice = (tokenizer.decode([token] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
    return twice[len(once) :].encode()


def _types(node: Any) -> set[str]:
    """Every `type` in a decoder's description."""
    if isinstance(node, list):
        return set().union(*map(_types, node)) if node else set()
    if isinstance(node, dict):
        return {node["type"]} if "decoders" not in node and "type" in node else _types(list(node.values()))
    return set()


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies: itself where it can be seen, else from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(unseen)}


def _check(tokenizer: Any, spelled: list[bytes]) -> None:
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    said = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if b"".join(spelled[i] for i in ids).decode(errors="replace").strip() != said.strip():
        raise LuthierError(
            f"this {type(tokenizer).__name__} joins its tokens in a way of its own: what each adds to a text is not known"
        )
