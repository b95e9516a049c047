"""What a decoder of several models changes, token by token, on given texts.

    distance_t = 1/2 sum_v |p_t(v) - q_t(v)|        total variation between two subjects' distributions at token t
    gain_t     = q_t(y_t) - p_t(y_t)                what the second gives more to the token that is there

Card 02 averages the gain over classes of tokens, card 13 the distance over positions: both come from the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.method import LuthierError
from luthier.core.subject import Subject

TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Offset:
    """One text: its tokens but the first (n,), the distance and the gain at each."""

    tokens: list[int]
    distance: np.ndarray
    gain: np.ndarray


def offsets(before: Subject, after: Subject, texts: Sequence[str]) -> list[Offset]:
    """What `after` changes in the distributions of `before`, text by text. Both must have one tokenizer."""
    out: list[Offset] = []
    for at in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[at : at + TEXTS_AT_ONCE])
        p, q = (dict(s.distributions(some)) for s in (before, after))
        for i, text in enumerate(some):
            tokens = before.encode(text)[1:]
            if p[i].shape != q[i].shape or len(tokens) != len(p[i]):
                raise LuthierError(
                    "offsets compares subjects that read the same tokens: give texts that fit both windows"
                )
            a, b = p[i].exp().cpu(), q[i].exp().cpu()
            t = np.arange(len(tokens))
            out.append(Offset(tokens, (0.5 * (a - b).abs().sum(-1)).numpy(), (b[t, tokens] - a[t, tokens]).numpy()))
    return out


def by_class(found: Sequence[Offset], kind: Callable[[int, int, int], str | None]) -> dict[str, dict[str, float]]:
    """Means over classes of tokens: `kind(text, place, token)` names the class, None leaves the token out."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i, one in enumerate(found):
        for t, token in enumerate(one.tokens):
            name = kind(i, t, token)
            if name is not None:
                rows[name].append((float(one.distance[t]), float(one.gain[t])))
    return {
        name: {
            "tokens": len(v),
            "distance": float(np.mean([d for d, _ in v])),
            "gain": float(np.mean([g for _, g in v])),
        }
        for name, v in sorted(rows.items())
    }


def promoted(found: Sequence[Offset], tokenizer: Any, n: int = 10, least: int = 3) -> list[tuple[str, float, int]]:
    """(token, mean gain, how often it was there) of the tokens that gain most, of those that occur `least` times."""
    gains: dict[int, list[float]] = defaultdict(list)
    for one in found:
        for token, gain in zip(one.tokens, one.gain, strict=True):
            gains[token].append(float(gain))
    ranked = sorted(((float(np.mean(g)), t) for t, g in gains.items() if len(g) >= least), reverse=True)
    return [(tokenizer.decode([t]), gain, len(gains[t])) for gain, t in ranked[:n]]
