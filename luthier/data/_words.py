"""Words of error messages: the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(kind: str, name: str, known: Iterable[str]) -> str:
    """`unknown <kind> 'x'; did you mean 'y'? valid: ...`"""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ";"
    return f"unknown {kind} '{name}'{guess} valid: {', '.join(names) or 'none'}"
