"""What scorers of programs share: tokens, BLEU, abstraction, syntax trees and data flow of Python text, and the runner.

    BLEU = BP exp( sum_n log(m_n / t_n) / 4 )        m_n matched n-grams, t_n said ones, n = 1 ... 4, summed over all items
    abstracted   names and literals become placeholders, numbered as they occur: consistent renaming changes nothing

Everything here takes any text: what is no Python has no tree and no data flow.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import keyword
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, TextScorer, need
from luthier.evaluation._runner import RunLimits, Verdict, run

__all__ = [
    "Aggregate",
    "Answers",
    "Item",
    "RunLimits",
    "Scorer",
    "TextScorer",
    "Verdict",
    "abstracted",
    "bleu",
    "bleu_counts",
    "data_flow",
    "edit_similarity",
    "fingerprint",
    "is_builtin",
    "is_keyword",
    "lines",
    "matched",
    "need",
    "ngrams",
    "run",
    "share",
    "subtrees",
    "tokens",
    "tree_of",
]  # fmt: skip

_TOKEN = re.compile(r"[^\W\d]\w*|\d+(?:\.\d+)?|\"[^\"\n]*\"|'[^'\n]*'|[<>=!+\-*/%&|^]=|\*\*|//|->|<<|>>|\S")
LONGEST = 50_000
"""Characters beyond which text is not parsed."""


def tokens(code: str) -> list[str]:
    """Names, numbers, strings and operators; blanks and line ends do not count."""
    return _TOKEN.findall(code)


def is_keyword(token: str) -> bool:
    """Whether Python reserves the word."""
    return keyword.iskeyword(token)


def is_builtin(token: str) -> bool:
    """Whether the name is Python's own (`sorted`, `ValueError`)."""
    return hasattr(builtins, token)


_NAME, _LITERAL = re.compile(r"[^\W\d]\w*"), re.compile(r"\d+(?:\.\d+)?|\"[^\"\n]*\"|'[^'\n]*'")


def abstracted(code: str) -> list[str]:
    """Tokens in which names are V1, V2 ... and literals L1, L2 ... in order of their first use; Python's own names stay."""
    known: dict[str, str] = {}
    counts = {"V": 0, "L": 0}

    def placeholder(token: str) -> str:
        literal = _LITERAL.fullmatch(token)
        if not literal and (not _NAME.fullmatch(token) or is_keyword(token) or is_builtin(token)):
            return token
        if token not in known:
            kind = "L" if literal else "V"
            counts[kind] += 1
            known[token] = f"{kind}{counts[kind]}"
        return known[token]

    return [placeholder(t) for t in tokens(code)]


def fingerprint(code: str) -> str:
    """Hash of the abstracted code: equal for texts that differ in names, literals and blanks alone."""
    return hashlib.sha256(" ".join(abstracted(code)).encode()).hexdigest()


def edit_similarity(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """1 - edits / length of the longer one, of two texts or lists; 1 for two empty ones."""
    if not a or not b:
        return float(len(a) == len(b))
    a, b = sorted((a, b), key=len)  # one pass for each member of the shorter one
    number = {member: i for i, member in enumerate(dict.fromkeys([*a, *b]))}
    codes = np.array([number[member] for member in b])
    at = np.arange(len(b) + 1)
    row = at.copy()
    for i, member in enumerate(a, 1):
        step = np.minimum(row[1:] + 1, row[:-1] + (codes != number[member]))
        step = np.concatenate([[i], step])
        row = np.minimum.accumulate(step - at) + at  # insertions, from the left
    return 1.0 - float(row[-1]) / max(len(a), len(b))


ORDERS = (1, 2, 3, 4)


def bleu_counts(
    name: str, said: Sequence[str], gold: Sequence[str], weight: Callable[[Sequence[str]], float] | None = None
) -> dict[str, float]:
    """Statistics of one item for `bleu(name)`; an n-gram counts `weight(n-gram)`, by default 1."""
    stats: dict[str, float] = {f"{name}_said": len(said), f"{name}_gold": len(gold)}
    for n in ORDERS:
        found, wanted = ngrams(said, n), ngrams(gold, n)
        one = {g: 1.0 if weight is None else weight(g) for g in found}
        stats[f"{name}_hit_{n}"] = sum(one[g] * min(c, wanted[g]) for g, c in found.items())
        stats[f"{name}_all_{n}"] = sum(one[g] * c for g, c in found.items())
    return stats


def share(part: NDArray, whole: NDArray) -> NDArray:
    """part / whole, undefined where the whole is nothing."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def bleu(name: str) -> Aggregate:
    """BLEU-4 of all items together, from the statistics of `bleu_counts`. Orders that no item has are left out."""

    def metric(stats: dict[str, NDArray], w: NDArray) -> NDArray:
        shares = np.stack([share(w @ stats[f"{name}_hit_{n}"], w @ stats[f"{name}_all_{n}"]) for n in ORDERS])  # (4, R)
        used = np.isfinite(shares)
        with np.errstate(divide="ignore"):
            logs = np.where(used, np.log(np.where(used, shares, 1.0)), 0.0).sum(0) / np.maximum(used.sum(0), 1)
        said, gold = w @ stats[f"{name}_said"], w @ stats[f"{name}_gold"]
        penalty = np.minimum(0.0, 1.0 - np.divide(gold, said, out=np.full(said.shape, np.inf), where=said > 0))
        return np.where(used.any(0), np.exp(logs + penalty), (gold == 0).astype(float))

    return metric


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def tree_of(code: str) -> ast.Module | None:
    """The syntax tree, or None where there is none."""
    if len(code) > LONGEST:
        return None
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def subtrees(tree: ast.AST | None) -> Counter[str]:
    """Shapes of all subtrees that have children: kinds of nodes and operators, without names and values."""
    found: Counter[str] = Counter()

    def shape(node: ast.AST) -> str:
        children = [shape(c) for c in ast.iter_child_nodes(node) if not isinstance(c, ast.expr_context)]
        text = f"{type(node).__name__}({' '.join(children)})"
        if children:
            found[text] += 1
        return text

    if tree is not None:
        shape(tree)
    return found


def data_flow(tree: ast.AST | None) -> Counter[tuple[str, str]]:
    """Edges (to, from): each name that is read, and where its value was last set. Names are numbered as they occur.

    `from` is "argument i" or "name.version"; `to` is the name that the reading statement sets, or "return", "test", "use".
    """
    edges: Counter[tuple[str, str]] = Counter()
    numbers: dict[str, int] = {}
    if tree is not None:
        _Flow(edges, numbers).visit(tree)
    return edges


class _Flow(ast.NodeVisitor):
    """Statements in order; a loop's body is gone through once."""

    def __init__(self, edges: Counter[tuple[str, str]], numbers: dict[str, int]) -> None:
        self.edges, self.numbers = edges, numbers
        self.known: dict[str, str] = {}
        self.versions: Counter[str] = Counter()
        self.into = "use"

    def name(self, name: str) -> str:
        return f"v{self.numbers.setdefault(name, len(self.numbers))}"

    def define(self, target: ast.AST) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.set(node.id)

    def set(self, name: str) -> None:
        label = self.name(name)
        self.versions[label] += 1
        self.known[name] = f"{label}.{self.versions[label]}"

    def read(self, node: ast.AST | None, into: str) -> None:
        if node is None:
            return
        before, self.into = self.into, into
        self.visit(node)
        self.into = before

    def target_of(self, target: ast.AST) -> str:
        named = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        return self.name(named[0]) if named else "use"

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in self.known:
            self.edges[self.into, self.known[node.id]] += 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.known)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.set(argument.arg)
        for statement in node.body:
            self.visit(statement)
        self.known = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.read(node.value, self.target_of(node.targets[0]))
        for target in node.targets:
            self.read(target, "use")
            self.define(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        into = self.target_of(node.target)
        self.read(node.value, into)
        if isinstance(node.target, ast.Name):
            if node.target.id in self.known:
                self.edges[into, self.known[node.target.id]] += 1
            self.set(node.target.id)
        else:
            self.read(node.target, into)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.read(node.value, self.target_of(node.target))
        self.define(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.read(node.iter, self.target_of(node.target))
        self.define(node.target)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_While(self, node: ast.While) -> None:
        self.read(node.test, "test")
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_If(self, node: ast.If) -> None:
        self.read(node.test, "test")
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_Return(self, node: ast.Return) -> None:
        self.read(node.value, "return")

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._comprehension(node.generators, [node.elt])

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._comprehension(node.generators, [node.elt])

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._comprehension(node.generators, [node.elt])

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node.generators, [node.key, node.value])

    def _comprehension(self, loops: Sequence[ast.comprehension], made: Sequence[ast.expr]) -> None:
        """Its own names end with it."""
        outer = dict(self.known)
        for loop in loops:
            self.read(loop.iter, self.target_of(loop.target))
            self.define(loop.target)
            for test in loop.ifs:
                self.read(test, "test")
        for node in made:
            self.visit(node)
        self.known = outer


def matched(found: Counter[Any], wanted: Counter[Any]) -> int:
    """How many of `wanted` are in `found`, each as often as it is there."""
    return sum((found & wanted).values())


def lines(code: str) -> Iterator[str]:
    """Lines with something on them, without blanks at their ends."""
    return (line.rstrip() for line in code.strip("\n").splitlines() if line.strip())
