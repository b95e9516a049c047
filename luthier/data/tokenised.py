"""Tokenised: token ids that were made elsewhere.

in      input_ids; optional labels (-100: not trained) and attention_mask (0: padding, dropped)
out     TextExample of the real tokens
trained where labels are not -100; without labels every token but a leading begin token
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.batch import IGNORED
from luthier.core.method import RowError
from luthier.data._family import Encoded, Rendered, TextRows, Tokens, needed


@dataclass(frozen=True)
class Tokenised(TextRows):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("input_ids",),)
    optional: ClassVar[tuple[str, ...]] = ("labels", "attention_mask")

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        return []

    def build(self, row: dict[str, Any], index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        ids = _whole(needed(row, "input_ids"), "input_ids")
        labels = _whole(row["labels"], "labels") if row.get("labels") is not None else None
        seen = row.get("attention_mask")
        mask = [1] * len(ids) if seen is None else _whole(seen, "attention_mask")
        if not ids:
            raise RowError("'input_ids' is empty")
        if len(mask) != len(ids) or (labels is not None and len(labels) != len(ids)):
            raise RowError("'input_ids', 'labels' and 'attention_mask' have different lengths")
        unknown = next((i for i in ids if not 0 <= i < len(tokenizer)), None)
        if unknown is not None:
            raise RowError(f"token {unknown} is not in a vocabulary of {len(tokenizer)}")
        if labels is None:
            counts = [t > 0 or i != tokenizer.bos_token_id for t, i in enumerate(ids)]
        else:
            counts = [y != IGNORED for y in labels]
            wrong = next((t for t, (i, y) in enumerate(zip(ids, labels)) if y not in (i, IGNORED)), None)
            if wrong is not None:
                raise RowError(
                    f"labels[{wrong}] is not input_ids[{wrong}]: labels stand at their own token, not one before"
                )
        real = [t for t, m in enumerate(mask) if m]
        return TextRows.build(self, row, index, [Tokens([ids[t] for t in real], [counts[t] for t in real])], tokenizer)


def _whole(value: Any, name: str) -> list[int]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise RowError(f"'{name}' is not a list of whole numbers") from None
    if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
        raise RowError(f"'{name}' is not a list of whole numbers")
    return value
