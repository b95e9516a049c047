"""Parallel: a source text and a target text, for encoder-decoder models.

in      source, target; or translation: {en: ..., de: ...} with source_lang and target_lang
out     SourceTargetExample: source tokens for the encoder, target tokens for the decoder
trained every target token, the end token included; never the source

source_prefix      text before every source, such as "translate English to German: "
max_target_length  tokens of a target; None: max_length
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from luthier.core.batch import SourceTargetExample
from luthier.core.method import LuthierError, RowError
from luthier.data._family import Encoded, RowType, Tokens, cut, nearest, needed


@dataclass(frozen=True)
class Parallel(RowType):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (33,)
    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = SourceTargetExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("source", "translation"), ("target", "translation"))
    source_prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    max_target_length: int | None = None

    def settle(self, rows: Sequence[dict[str, Any]], names: Mapping[str, list[str]]) -> tuple[Self, list[str]]:
        first = next((_pair(r) for r in rows if r.get("translation") is not None), None)
        if first is None:
            return self, []
        for key in (self.source_lang, self.target_lang):
            if key is not None and key not in first:
                raise LuthierError(f"data: {nearest('language', key, first)}")
        if self.source_lang and self.target_lang:
            return self, []
        if len(first) == 2 and (self.source_lang or self.target_lang):
            other = next(k for k in first if k not in (self.source_lang, self.target_lang))
            settled = replace(self, source_lang=self.source_lang or other, target_lang=self.target_lang or other)
            return settled, [f"from {settled.source_lang} to {settled.target_lang}"]
        raise LuthierError(
            f"data: translation has the languages {', '.join(first)}; say the direction: "
            "data: {source_lang: ..., target_lang: ...}"
        )

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], indices: Sequence[int], tokenizer: Any
    ) -> list[Encoded | RowError]:
        results: list[Any] = [self._texts(row) for row in rows]
        good = [i for i, r in enumerate(results) if not isinstance(r, RowError)]
        if not good:
            return results
        sources = tokenizer([results[i][0] for i in good], verbose=False)["input_ids"]
        targets = tokenizer(text_target=[results[i][1] for i in good], verbose=False)["input_ids"]
        for i, ids, target in zip(good, sources, targets):
            try:
                results[i] = self._example(indices[i], ids, target, tokenizer)
            except RowError as error:
                results[i] = error
        return results

    def _texts(self, row: dict[str, Any]) -> tuple[str, str] | RowError:
        try:
            if row.get("translation") is not None:
                pair = _pair(row)
                source, target = needed(pair, self.source_lang or ""), needed(pair, self.target_lang or "")
            else:
                source, target = needed(row, "source"), needed(row, "target")
            if not isinstance(source, str) or not isinstance(target, str):
                raise RowError("source and target must be text")
        except RowError as error:
            return error
        return self.source_prefix + source, target

    def _example(self, index: int, ids: list[int], target: list[int], tokenizer: Any) -> Encoded:
        eos, limit = tokenizer.eos_token_id, self.max_target_length or self.max_length
        if eos is not None and (not target or target[-1] != eos):
            target = [*target, eos]
        if not ids or not target:
            raise RowError("source or target is empty")
        self.fits(len(ids))
        if self.overlong == "reject" and limit is not None and len(target) > limit:
            raise RowError(f"the target has {len(target)} tokens, more than {limit} (overlong: reject)")
        source = cut(Tokens(ids, [False] * len(ids)), self.max_length, self.truncation_mode, tokenizer.bos_token_id)
        answer = cut(Tokens(target, [True] * len(target)), limit, self.truncation_mode, None)
        return Encoded(SourceTargetExample(index, source.ids, answer.ids), source.marks | answer.marks)


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    pair = row["translation"]
    if isinstance(pair, str):
        try:
            pair = json.loads(pair)
        except json.JSONDecodeError:
            pair = None
    if not isinstance(pair, Mapping):
        raise RowError("'translation' is not an object with one text per language")
    return {k: v for k, v in pair.items() if v is not None}
