"""Code similarity: a generated program beside the reference, by tokens, syntax tree and data flow.

    code_match = mean of the parts that are defined:
        bleu           BLEU-4 of tokens:  BP exp( sum_n log(m_n / t_n) / 4 )        m_n matched n-grams, t_n said ones
        weighted_bleu  the same; an n-gram counts w = mean over its tokens of (1 if keyword else 1/5)
        ast_match      subtrees of the reference found in the output / subtrees of the reference
        dataflow_match edges of the reference found in the output / edges of the reference
    exact_match        equal tokens line by line;    edit_similarity = 1 - Levenshtein / longer, in characters
    parses             the output is Python

    program   how a text is put together from the row's columns and {output}; the reference is put together in the same
              way with the reference as {output}
Sums run over all items first (corpus level), as in BLEU; intervals resample items. A reference without data flow has no
edges: the part is then left out and the others weigh more (`details` says how many items have none).
Cost:       one generation an item.
Paper:      Papineni et al., 2002 (BLEU); Ren et al., 2020, "CodeBLEU", arXiv:2009.10297, whose four parts these follow.
Departures: this is not CodeBLEU: trees and data flow are those of Python's own `ast`, subtrees count as often as they
            occur, and tokens are this file's. Orders of n-grams that no item has are left out of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation._code import (
    Aggregate,
    Answers,
    Item,
    TextScorer,
    bleu,
    bleu_counts,
    data_flow,
    edit_similarity,
    is_keyword,
    lines,
    matched,
    share,
    subtrees,
    tokens,
    tree_of,
)

PLAIN_WORD = 0.2
"""Weight of a token that is no keyword, in `weighted_bleu`."""
PARTS = ("bleu", "weighted_bleu", "ast_match", "dataflow_match")


@dataclass(frozen=True)
class CodeSimilarity(TextScorer):
    paper: ClassVar[str] = "arXiv:2009.10297"
    cards: ClassVar[tuple[int, ...]] = (21, 63)
    metrics: ClassVar[dict[str, bool]] = {
        "code_match": True, "bleu": True, "weighted_bleu": True, "ast_match": True, "dataflow_match": True,
        "exact_match": True, "edit_similarity": True, "parses": True,
    }  # fmt: skip
    proportions: ClassVar[frozenset[str]] = frozenset({"exact_match"})
    sample: ClassVar[str] = "edit_similarity"
    program: str = "{output}"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def judge(self, output: str, item: Item) -> dict[str, float]:
        said, gold = (self.program.format_map({**item.row, "output": text}) for text in (output, item.reference))
        a, b = tokens(said), tokens(gold)
        stats: dict[str, float] = {}
        for name, weight in (("bleu", None), ("weighted_bleu", _by_keywords)):
            stats |= bleu_counts(name, a, b, weight)
        trees = [tree_of(text) for text in (said, gold)]
        for name, parts in (("ast_match", subtrees), ("dataflow_match", data_flow)):
            found_parts, wanted_parts = (parts(tree) for tree in trees)
            stats[f"{name}_hit"] = matched(found_parts, wanted_parts)
            stats[f"{name}_all"] = sum(wanted_parts.values())
        stats["exact_match"] = float([*map(tokens, lines(said))] == [*map(tokens, lines(gold))])
        stats["edit_similarity"] = edit_similarity(said, gold)
        stats["parses"] = float(trees[0] is not None)
        return stats

    def accepts(self, reference: str, item: Item) -> bool:
        return tokens(reference) == tokens(item.reference or "")

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return metric in ("exact_match", "edit_similarity", "parses")

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if self.decomposes(metric, answers):
            return super().aggregate(metric, answers)
        return _PARTS.get(metric, _code_match)

    def details(self, answers: Answers) -> dict[str, Any]:
        """How many references have no tree and no data flow."""
        return {f"references without {k}": int((answers.stats[f"{k}_all"] == 0).sum()) for k in PARTS[2:]}


def _by_keywords(gram: Sequence[str]) -> float:
    return sum(1.0 if is_keyword(token) else PLAIN_WORD for token in gram) / len(gram)


def _of_reference(name: str) -> Aggregate:
    return lambda stats, w: share(w @ stats[f"{name}_hit"], w @ stats[f"{name}_all"])


_PARTS = {
    "bleu": bleu("bleu"),
    "weighted_bleu": bleu("weighted_bleu"),
    "ast_match": _of_reference("ast_match"),
    "dataflow_match": _of_reference("dataflow_match"),
}


def _code_match(stats: dict[str, NDArray], w: NDArray) -> NDArray:
    parts = np.stack([_PARTS[name](stats, w) for name in PARTS])  # (4, R)
    known = np.isfinite(parts)
    return share(np.where(known, parts, 0.0).sum(0), known.sum(0).astype(float))
