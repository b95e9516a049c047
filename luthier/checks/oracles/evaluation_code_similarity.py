"""sacrebleu for BLEU; the other parts by plain loops over lists, from the formulas."""

from __future__ import annotations

import ast
import keyword
import math
from typing import Any

import sacrebleu

from luthier import sandbox
from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._code import data_flow, tokens
from luthier.evaluation._family import items_of


def _pairs() -> list[tuple[str, str]]:
    """(said, right): buggy programs of the sandbox, right ones, and one that is cut off."""
    rows = sandbox.rows("programs", task="repair", split="test", n=24, seed=3)
    pairs = [(r["buggy"] if i % 3 else r["code"], r["code"]) for i, r in enumerate(rows)]
    return [*pairs, (rows[0]["code"][:-4] + " (", rows[0]["code"])]


def _answers(scorer: Any, pairs: list[tuple[str, str]]) -> Any:
    items = items_of([{"prompt": "p", "answer": right} for _, right in pairs])
    return scorer.score([said for said, _ in pairs], items)


def oracle_sacrebleu() -> None:
    pairs, scorer = _pairs(), method(__name__)
    said, right = ([" ".join(tokens(p[i])) for p in pairs] for i in (0, 1))
    wanted = sacrebleu.corpus_bleu(said, [right], tokenize="none", smooth_method="none", force=True).score / 100
    equal(value(scorer, _answers(scorer, pairs), "bleu"), wanted, "bleu")


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _taken(some: list[Any], there: list[Any]) -> list[Any]:
    """Members of `some` that are in `there`, each of which is used once."""
    rest, found = list(there), []
    for one in some:
        if one in rest:
            rest.remove(one)
            found.append(one)
    return found


def _weight(gram: tuple[str, ...]) -> float:
    return sum(1.0 if keyword.iskeyword(t) else 0.2 for t in gram) / len(gram)


def _shapes(code: str) -> list[Any]:
    """Nested tuples of all nodes with children."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return []

    def nested(node: ast.AST) -> Any:
        below = [n for n in ast.iter_child_nodes(node) if not isinstance(n, (ast.Load, ast.Store, ast.Del))]
        return (type(node).__name__, tuple(nested(n) for n in below))

    return [shape for shape in map(nested, ast.walk(tree)) if shape[1]]


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def oracle_formulas() -> None:
    pairs, scorer = _pairs(), method(__name__)
    answers = _answers(scorer, pairs)
    hit, every, said_words, right_words = [0.0] * 4, [0.0] * 4, 0, 0
    shapes_hit = shapes_all = 0
    edits = []
    for said, right in pairs:
        a, b = tokens(said), tokens(right)
        said_words, right_words = said_words + len(a), right_words + len(b)
        for n in range(4):
            hit[n] += sum(map(_weight, _taken(_grams(a, n + 1), _grams(b, n + 1))))
            every[n] += sum(map(_weight, _grams(a, n + 1)))
        shapes_hit += len(_taken(_shapes(right), _shapes(said)))
        shapes_all += len(_shapes(right))
        edits.append(1 - _distance(said, right) / max(len(said), len(right)))
    brevity = min(1.0, math.exp(1 - right_words / said_words))
    wanted = {
        "weighted_bleu": brevity * math.exp(sum(math.log(h / e) for h, e in zip(hit, every)) / 4),
        "ast_match": shapes_hit / shapes_all, "edit_similarity": sum(edits) / len(edits),
        "exact_match": sum(said.split() == right.split() for said, right in pairs) / len(pairs),
    }  # fmt: skip
    for metric, number in wanted.items():
        equal(value(scorer, answers, metric), number, metric)
    parts = [value(scorer, answers, m) for m in ("bleu", "weighted_bleu", "ast_match", "dataflow_match")]
    equal(value(scorer, answers, "code_match"), sum(parts) / 4, "code_match")


def oracle_data_flow_by_hand() -> None:
    """Edges written down by hand: v0, v1, ... are names in the order in which they occur."""
    told = {
        "def f(xs):\n xs = sorted(xs)\n return sum(xs)": {("v0", "v0.1"): 1, ("return", "v0.2"): 1},
        "a = 1\nb = a + a\na += b\nprint(a)": {
            ("v1", "v0.1"): 2,
            ("v0", "v1.1"): 1,
            ("v0", "v0.1"): 1,
            ("use", "v0.2"): 1,
        },
        "def f(xs):\n return [x * 2 for x in xs if x > 1]": {
            ("v1", "v0.1"): 1,
            ("test", "v1.1"): 1,
            ("return", "v1.1"): 1,
        },
        "print(3)": {},
    }
    for code, edges in told.items():
        found = dict(data_flow(ast.parse(code)))
        require(found == edges, f"{code!r}: edges {found}, by hand {edges}")
    renamed = "def g(values):\n values = sorted(values)\n return sum(values)"
    first = next(iter(told))
    require(data_flow(ast.parse(renamed)) == data_flow(ast.parse(first)), "names decide the data flow")
