"""Code style: generated tests beside the project's own, with names and literals taken away, and by the names alone.

    abstract_bleu     BLEU-4 of abstracted tokens: names and literals are placeholders, numbered as they occur
    abstract_edit     1 - edits / longer, in abstracted tokens;    abstract_match: they are equal
    style_distance    Jensen-Shannon divergence (bits, 0 to 1) of the kinds of names said and those of the references;
                      kind = (function, class, attribute, call or other; snake, camel, Pascal, upper, lower or one letter)
    own_identifiers   share of the names said that the project uses;    own_assertions, own_exceptions: of those that are
                      assertions (by `assertions`) and exceptions (Pascal case and not called)
    parses            the output is Python;                   calls_focal: it calls the function that is to be tested
    has_assert        an assert, or a call of a helper for one;  same_asserts: as many as the reference has
    plausible         all three: it parses, calls the function and asserts
    plausible@k       one of the first k candidates is plausible

    k          ks of plausible@k, beside 1; above 1 the decoder is asked for candidates (beam search, sampling)
    focal      column that names the tested function; where there is none it is the last function of the prompt
    assertions what a helper for assertions is called, as a regular expression without case
    source     a sandbox path for a scorer that brings its rows;  n, seed  how many, which
The project is the items' references. Names in an item's own prompt do not count as said: whoever copies has no style.
BLEU, the distance and the three shares are of all items together; a share is undefined where nothing of the kind is said.
Cost:       one generation an item; max(k) where candidates are asked for.
Paper:      Zlotchevski et al., 2022, "Exploring and Evaluating Personalized Models for Code Generation", arXiv:2208.13928,
            section 5 (code and task metrics).
Departures: Python in place of Java. Names are told apart by the tokens around them, so that broken text has names too.
            Use of mocks is told as a detail: more of it is neither better nor worse.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._code import (
    Aggregate,
    Answers,
    Item,
    TextScorer,
    abstracted,
    bleu,
    bleu_counts,
    edit_similarity,
    is_builtin,
    is_keyword,
    need,
    share,
    tokens,
    tree_of,
)

ROLES = ("function", "class", "attribute", "call", "other")
CASES = ("letter", "upper", "pascal", "snake", "camel", "lower")
OWN = ("identifiers", "assertions", "exceptions")
_NAME, _COMMENT = re.compile(r"[^\W\d]\w*"), re.compile(r"#[^\n\"']*$", re.MULTILINE)
_FUNCTION = re.compile(r"\bdef\s+(\w+)")
Names = Sequence[tuple[str, str]]
"""(name, role) in order."""


@dataclass(frozen=True)
class CodeStyle(TextScorer):
    paper: ClassVar[str] = "arXiv:2208.13928"
    cards: ClassVar[tuple[int, ...]] = (21,)
    metrics: ClassVar[dict[str, bool]] = {
        "abstract_bleu": True, "abstract_edit": True, "abstract_match": True, "style_distance": False,
        "own_identifiers": True, "own_assertions": True, "own_exceptions": True, "parses": True, "calls_focal": True,
        "has_assert": True, "same_asserts": True, "plausible": True,
    }  # fmt: skip
    proportions: ClassVar[frozenset[str]] = frozenset({"abstract_match", "parses"})
    units: ClassVar[dict[str, str]] = {"style_distance": "bits"}
    sample: ClassVar[str] = "abstract_edit"
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    k: tuple[int, ...] = ()
    focal: str = "focal"
    assertions: str = "assert|check|confirm|demand|ensure|expect|must|prove|require|should|verify"
    source: str = ""
    n: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.k):
            raise LuthierError(f"code_style: k is {list(self.k)}: numbers of candidates, from 1 on")

    @classmethod
    def example(cls) -> Self:
        return cls(source="projects/test/personal", n=8)

    def rows(self) -> list[dict[str, Any]] | None:
        from luthier import sandbox

        return sandbox.rows(self.source, split="test", n=self.n, seed=self.seed) if self.source else None

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        if max(self.k, default=1) == 1:
            return super().ask(subject, items, base)
        need(items, "prompt", self.name)
        self.check(items)
        found = subject.candidates([i.prompt for i in items], max(self.k), self.max_new_tokens, self.stop)
        answers = self.score([texts[0] if texts else "" for texts in found], items)
        good = [[self.task(text, item)["plausible"] for text in texts] for texts, item in zip(found, items)]
        for k in self.k:
            answers.stats[f"plausible@{k}"] = np.array([max(one[:k], default=0.0) for one in good])
        return answers

    def score(self, outputs: Sequence[str], items: Sequence[Item]) -> Answers:
        own = self.vocabulary(items)
        judged = [self.judge(o, i, own) for o, i in zip(outputs, items, strict=True)]
        stats = {k: [j[k] for j in judged] for k in (judged[0] if judged else {})}
        return self.answers(items, stats, outputs)

    def judge(self, output: str, item: Item, own: dict[str, set[str]] | None = None) -> dict[str, float]:
        own = self.vocabulary([item]) if own is None else own
        gold = item.reference or ""
        a, b = abstracted(output), abstracted(gold)
        stats = {
            **bleu_counts("abstract_bleu", a, b), "abstract_edit": edit_similarity(a, b),
            "abstract_match": float(a == b), **self.task(output, item),
        }  # fmt: skip
        said, right = names(output), names(gold)
        for side, found in (("said", said), ("gold", right)):
            kinds = Counter((role, case_of(name)) for name, role in found)
            stats |= {f"{side}_{role}_{case}": kinds[role, case] for role in ROLES for case in CASES}
        for kind, mine in self.kinds(said, item).items():
            stats[f"own_{kind}_hit"], stats[f"own_{kind}_all"] = len(mine & own[kind]), len(mine)
        return stats

    def task(self, output: str, item: Item) -> dict[str, float]:
        """What a test must do, from its syntax tree; nothing is done by what does not parse."""
        tree, right = tree_of(output), tree_of(item.reference or "")
        focal = self.focal_of(item)
        calls = _calls(tree)
        asserts, wanted = self.count_asserts(tree), self.count_asserts(right)
        # a function that is handed on ("raises(Error, f)") is called as well
        used = focal in calls or (tree is not None and any(focal in _handed(n) for n in ast.walk(tree)))
        stats = {
            "parses": tree is not None and bool(output.strip()), "calls_focal": used, "has_assert": asserts > 0,
            "same_asserts": tree is not None and asserts == wanted,
            "mocks": any("mock" in c.lower() or c == "patch" for c in calls),
        }  # fmt: skip
        stats["plausible"] = stats["parses"] and stats["calls_focal"] and stats["has_assert"]
        return {k: float(v) for k, v in stats.items()}

    def focal_of(self, item: Item) -> str:
        """The function that the item's test is for; empty where neither the row nor the prompt tells."""
        told = item.row.get(self.focal)
        found = _FUNCTION.findall(item.prompt) if isinstance(item.prompt, str) else []
        return str(told) if told else found[-1] if found else ""

    def count_asserts(self, tree: ast.AST | None) -> int:
        """Assert statements, and calls of helpers outside them."""
        if tree is None:
            return 0
        inside = {id(n) for s in ast.walk(tree) if isinstance(s, ast.Assert) for n in ast.walk(s)}
        outside = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n) not in inside]
        found = sum(isinstance(n, ast.Assert) for n in ast.walk(tree))
        return found + sum(self.is_assertion(_called(n)) for n in outside)

    def is_assertion(self, name: str) -> bool:
        return re.match(self.assertions, name.lstrip("_"), re.IGNORECASE) is not None

    def kinds(self, found: Names, item: Item) -> dict[str, set[str]]:
        """Names by kind. Names of definitions, Python's own and those of the prompt are no one's style; exceptions come
        from there by their nature and count."""
        asked = {name for name, _ in names(str(item.prompt or ""))}
        own = {(n, r) for n, r in found if r not in ("function", "class") and not is_builtin(n)}
        free = {(n, r) for n, r in own if n not in asked}
        return {
            "identifiers": {n for n, _ in free},
            "assertions": {n for n, r in free if r in ("call", "attribute") and self.is_assertion(n)},
            "exceptions": {n for n, r in found if r == "other" and case_of(n) == "pascal"},
        }

    def vocabulary(self, items: Sequence[Item]) -> dict[str, set[str]]:
        """The project's own names by kind."""
        out: dict[str, set[str]] = {kind: set() for kind in OWN}
        for item in items:
            for kind, mine in self.kinds(names(item.reference or ""), item).items():
                out[kind] |= mine
        return out

    def accepts(self, reference: str, item: Item) -> bool:
        return abstracted(reference) == abstracted(item.reference or "")

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**self.metrics, **{f"plausible@{k}": True for k in sorted(self.k) if f"plausible@{k}" in answers.stats}}

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if self.decomposes(metric, answers):
            return super().aggregate(metric, answers)
        if metric == "abstract_bleu":
            return bleu(metric)
        if metric == "style_distance":
            return _divergence
        return lambda stats, w: share(w @ stats[f"{metric}_hit"], w @ stats[f"{metric}_all"])

    def details(self, answers: Answers) -> dict[str, Any]:
        """Share of tests that use mocks."""
        return {"with mocks": float(answers.stats["mocks"].mean())}


def names(code: str) -> Names:
    """Every name with its role, by the tokens beside it. Keywords, strings and comments have none."""
    words = ["", *tokens(_COMMENT.sub("", code)), ""]
    found = []
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        if not _NAME.fullmatch(word) or is_keyword(word):
            continue
        role = {"def": "function", "class": "class", ".": "attribute"}.get(before) or (
            "call" if after == "(" else "other"
        )
        found.append((word, role))
    return found


def case_of(name: str) -> str:
    """How a name is written."""
    bare = name.strip("_")
    if len(bare) <= 1:
        return "letter"
    if bare == bare.upper():
        return "upper"
    if "_" in bare:
        return "snake"
    return "lower" if bare == bare.lower() else "pascal" if bare[0].isupper() else "camel"


def _called(node: ast.AST) -> str:
    """The last part of what is called."""
    function = node.func if isinstance(node, ast.Call) else node
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _calls(tree: ast.AST | None) -> set[str]:
    return set() if tree is None else {_called(n) for n in ast.walk(tree) if isinstance(n, ast.Call)}


def _handed(node: ast.AST) -> set[str]:
    """Names that are arguments of a call."""
    return {_called(a) for a in node.args if isinstance(a, ast.Name)} if isinstance(node, ast.Call) else set()


def _divergence(stats: dict[str, NDArray], w: NDArray) -> NDArray:
    """Jensen-Shannon divergence of two sets of counts, (R,); undefined where a side has no name."""
    kinds = [f"{role}_{case}" for role in ROLES for case in CASES]
    said, gold = (np.stack([w @ stats[f"{side}_{kind}"] for kind in kinds]) for side in ("said", "gold"))  # (K, R)
    p, q = (share(x, np.broadcast_to(x.sum(0), x.shape)) for x in (said, gold))
    middle = (p + q) / 2

    def towards(x: NDArray) -> NDArray:
        safe = np.where(x > 0, x, 1.0)
        return np.where(x > 0, x * np.log2(safe / np.where(x > 0, middle, 1.0)), 0.0).sum(0)

    return np.where(np.isfinite(p).all(0) & np.isfinite(q).all(0), (towards(p) + towards(q)) / 2, np.nan)
