"""BM25: documents ranked by the words that they share with a query. The library is bm25s (extra `retrieval`).

    score(q, d) = sum_{t in q} idf_t f_td / (f_td + k1 (1 - b + b |d| / mean |d|))        f_td  how often word t is in d
    idf_t       = log(1 + (N - n_t + 1/2) / (n_t + 1/2))                                  n_t   documents of N that have t

as in Lucene: the constant factor k1 + 1 of the first papers, which changes no order, is left out. Words are runs of letters
and digits in lower case; nothing is stemmed and no word is left out.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def have_bm25() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("bm25s") is not None


class Bm25:
    """An index of documents. `asked_by` names the option that needs it, for the error where the library is missing."""

    def __init__(self, documents: Sequence[str], asked_by: str, k1: float = 1.5, b: float = 0.75):
        if not have_bm25():
            raise LuthierError(f"{asked_by} needs the package bm25s: pip install 'luthier[retrieval]'")
        import bm25s

        self.n = len(documents)
        self.index = bm25s.BM25(k1=k1, b=b, backend="numpy")
        split = [words(d) for d in documents]
        self.known = {w for d in split for w in d}
        if self.known:
            self.index.index(split, show_progress=False, leave_progress=False)

    def scores(self, query: str) -> NDArray:
        """(n,) score of every document."""
        asked = [w for w in words(query) if w in self.known]
        return self.index.get_scores(asked) if asked else np.zeros(self.n, dtype=np.float32)

    def top(self, query: str, k: int) -> list[int]:
        """Indices of the k best documents, best first; of equal ones the first."""
        return np.argsort(-self.scores(query), kind="stable")[:k].tolist()
