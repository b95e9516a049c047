"""Splits without leaks: seeded, by strata, by groups, and a search for rows that are on both sides.

Rows that say the same, or ask the same, are a group of their own, and no group is ever in two parts. With strata, each gets
its share of the evaluation rows to within one group.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from luthier.core.method import LuthierError
from luthier.data._reading import RowTable, dig
from luthier.data._words import nearest

_CONTENT = (
    "messages", "prompt", "completion", "chosen", "rejected", "text", "text_pair", "sentence1", "sentence2", "source",
    "target", "translation", "segments", "input_ids", "query", "anchor", "positive", "negative", "negatives",
)  # fmt: skip
_PUNCTUATION = re.compile(r"[\s.,!?;:'\"`“”‘’«»„…()\[\]{}]+")


Prints = list[tuple[str, str]]
"""Kinds of text and the texts of one row."""


class LeakWarning(UserWarning):
    """Rows of the evaluation part are in the training part as well."""


class Overlap(NamedTuple):
    """A row that occurs in both parts. kind: exact, normalised (case, spaces, punctuation aside) or prompt."""

    kind: str
    train: str
    evaluation: str
    text: str


def split(
    table: RowTable,
    val_size: float | int,
    *,
    seed: int = 0,
    stratify: str | None = None,
    group: str | None = None,
    check: bool = True,
) -> tuple[RowTable, RowTable]:
    """(train, evaluation). `val_size` below 1 is a share, from 1 on a number of rows. Order within a part is kept.

    Rows of the same text stay together, and so do rows of the same prompt, where the evaluation part still comes within a
    tenth of its size: a prompt that everything begins with tells nothing apart.
    """
    n = len(table)
    wanted = _wanted(val_size, n)
    strata = _keys(table, stratify, "stratify")
    groups = _keys(table, group, "group")
    prints = [_fingerprints(row) for row in table.rows]
    for kinds in (("exact", "normalised", "prompt"), ("exact", "normalised"), ()):
        members = _together(prints, groups, kinds)
        chosen = _chosen(members, strata, wanted, random.Random(seed))
        if chosen and abs(len(chosen) - wanted) <= max(1, 0.1 * wanted):
            break
    if not 0 < len(chosen) < n:
        what = f"; there are {len(members)} groups by '{group}'" if group else ""
        raise LuthierError(f"data: val_size {val_size} leaves one part of {n} rows empty{what}")
    kept, held = [i for i in range(n) if i not in chosen], sorted(chosen)
    if check:
        rows = list(zip(prints, table.origins, strict=True))
        _warn(_shared([rows[i] for i in kept], [rows[i] for i in held]), len(held))
    return table.take(kept, rejected=True), table.take(held)


def _chosen(members: Sequence[list[int]], strata: list[Hashable] | None, wanted: int, rng: random.Random) -> set[int]:
    """Places of about `wanted` rows, whole lists of `members`, each stratum's share of them."""
    pools: dict[Hashable, list[list[int]]] = defaultdict(list)
    for rows in members:
        pools[_most_common([strata[i] for i in rows]) if strata else None].append(rows)
    chosen: set[int] = set()
    quotas = _quotas({k: sum(map(len, p)) for k, p in pools.items()}, wanted)
    for key, pool in pools.items():
        rng.shuffle(pool)
        chosen.update(_fill(pool, quotas[key]))
    return chosen


def _together(prints: Sequence[Prints], groups: list[Hashable] | None, kinds: Sequence[str]) -> list[list[int]]:
    """Places of rows, those that share a group or a text of one of `kinds` in one list; lists and places in order."""
    first: dict[Hashable, int] = {}
    root = list(range(len(prints)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for i, texts in enumerate(prints):
        keys: list[Hashable] = [found for found in texts if found[0] in kinds]
        if groups:
            keys.append(("group", groups[i]))
        for key in keys:
            a, b = sorted((find(i), find(first.setdefault(key, i))))
            root[b] = a
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(prints)):
        members[find(i)].append(i)
    return list(members.values())


def _wanted(val_size: float | int, n: int) -> int:
    if isinstance(val_size, bool) or val_size <= 0:
        raise LuthierError(f"data: val_size must be a share below 1 or a number of rows, not {val_size}")
    if val_size < 1:
        return max(1, round(val_size * n))
    if val_size != int(val_size) or val_size >= n:
        raise LuthierError(f"data: val_size {val_size} of {n} rows: give a share below 1 or fewer rows than there are")
    return int(val_size)


def _keys(table: RowTable, column: str | None, option: str) -> list[Hashable] | None:
    if column is None:
        return None
    keys: list[Hashable] = []
    for row, origin in zip(table.rows, table.origins):
        try:
            value = dig(row, column)
        except KeyError:
            if column.split(".")[0] not in table.columns:
                raise LuthierError(f"data: {option}: {nearest('column', column, table.columns)}") from None
            raise LuthierError(f"{origin}: {option}: no '{column}' in this row") from None
        keys.append(json.dumps(value, sort_keys=True, default=repr))
    return keys


def _most_common(values: Sequence[Hashable]) -> Hashable:
    return max(dict.fromkeys(values), key=values.count)


def _quotas(sizes: dict[Hashable, int], wanted: int) -> dict[Hashable, int]:
    """`wanted` rows over strata in proportion, by largest remainders."""
    total = sum(sizes.values())
    exact = {k: wanted * s / total for k, s in sizes.items()}
    quotas = {k: int(x) for k, x in exact.items()}
    for k in sorted(exact, key=lambda k: quotas[k] - exact[k])[: wanted - sum(quotas.values())]:
        quotas[k] += 1
    return quotas


def _fill(pool: Sequence[list[int]], quota: int) -> list[int]:
    """Whole groups as long as they bring the number of rows nearer to the quota."""
    taken: list[int] = []
    for rows in pool:
        if abs(len(taken) + len(rows) - quota) < abs(len(taken) - quota):
            taken += rows
    return taken


def overlap(train: RowTable, evaluation: RowTable, *, warn: bool = True) -> list[Overlap]:
    """Evaluation rows whose whole text, or whose prompt, is also in the training rows."""
    found = _shared(
        *([(_fingerprints(row), o) for row, o in zip(t.rows, t.origins, strict=True)] for t in (train, evaluation))
    )
    if warn:
        _warn(found, len(evaluation))
    return found


def _shared(train: Sequence[tuple[Prints, str]], evaluation: Sequence[tuple[Prints, str]]) -> list[Overlap]:
    seen: dict[tuple[str, str], str] = {}
    for prints, origin in train:
        for one in prints:
            seen.setdefault(one, origin)
    found = []
    for prints, origin in evaluation:
        if (hit := next((one for one in prints if one in seen), None)) is not None:
            found.append(Overlap(hit[0], seen[hit], origin, hit[1][:80]))
    return found


def _warn(found: Sequence[Overlap], evaluation: int) -> None:
    if not found:
        return
    first = found[0]
    kinds = ", ".join(f"{sum(f.kind == k for f in found)} {k}" for k in dict.fromkeys(f.kind for f in found))
    warnings.warn(
        f"LEAK: {len(found)} of {evaluation} evaluation rows are in the training rows too ({kinds}); first: "
        f"{first.evaluation} = {first.train}. Remove them, or split by group",
        LeakWarning,
        stacklevel=3,
    )


def _fingerprints(row: dict[str, Any]) -> Prints:
    """Texts to compare, the strictest first. Columns that no row type reads (ids, sources) do not count."""
    content = {k: row[k] for k in _CONTENT if row.get(k) is not None}
    texts = list(_strings(content or row))
    prompt = list(_strings(_question(row)))
    out = [("exact", "\n".join(texts)), ("normalised", _normalised(texts)), ("prompt", _normalised(prompt))]
    return [(kind, text) for kind, text in out if text.strip()]


def _question(row: dict[str, Any]) -> Any:
    """What is asked in a row, without what is answered; None where a row does not tell them apart."""
    messages = row.get("messages")
    if isinstance(messages, list):
        spoken = [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "assistant"]
        return messages[: spoken[-1]] if spoken else messages
    for key in ("prompt", "source", "question", "query", "anchor"):
        if row.get(key):
            return [
                row[key],
                row["answers"] if row.get("correct_answer") else None,
            ]  # options are part of what is asked
    return None


def _strings(value: Any, key: str = "") -> list[str]:
    """All texts inside a value, roles and ids aside."""
    if isinstance(value, str):
        return [] if key in ("role", "id", "origin") else [value]
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in _strings(v, k)]
    if isinstance(value, (list, tuple)):
        return [s for v in value for s in _strings(v, key)]
    return [] if value is None else [repr(value)]


def _normalised(texts: Sequence[str]) -> str:
    text = " ".join(texts)
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return _PUNCTUATION.sub(" ", text).strip()  # signs of arithmetic stay: 2-2 is not 2+2
