"""What scorers of programs share: tokens, syntax trees and data flow of Python text, and the runner.

Everything here takes any text: what is no Python has no tree and no data flow.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections import Counter
from collections.abc import Iterator, Sequence

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
    "data_flow",
    "is_keyword",
    "lines",
    "matched",
    "need",
    "ngrams",
    "run",
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


def matched(found: Counter[str] | Counter[tuple[str, str]], wanted: Counter[str] | Counter[tuple[str, str]]) -> int:
    """How many of `wanted` are in `found`, each as often as it is there."""
    return sum(min(n, found[key]) for key, n in wanted.items())  # type: ignore[index]


def lines(code: str) -> Iterator[str]:
    """Lines with something on them, without blanks at their ends."""
    return (line.rstrip() for line in code.strip("\n").splitlines() if line.strip())
