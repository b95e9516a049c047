"""Python's own tokenizer for abstraction and names, sacrebleu for BLEU, scipy for the divergence; the rest by hand."""

from __future__ import annotations

import builtins
import io
import keyword
import math
import tokenize
from collections import Counter
from typing import Any

from luthier import sandbox
from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of

PASSED = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT)


def _rows() -> list[dict[str, Any]]:
    return sandbox.rows("projects/test/personal", split="test", n=20, seed=4)


def _answers(scorer: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Every test is answered by that of another function; the first one by its own."""
    rows = _rows()
    said = [rows[0]["answer"], *(r["answer"] for r in rows[2:]), rows[1]["answer"]]
    return scorer.score(said, items_of(rows)), [(s, r["answer"]) for s, r in zip(said, rows, strict=True)]


def _tokens(code: str) -> list[tokenize.TokenInfo]:
    return [t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type not in PASSED]


def _abstracted(code: str) -> list[str]:
    out: list[str] = []
    seen: list[str] = []
    for token in _tokens(code):
        literal = token.type in (tokenize.NUMBER, tokenize.STRING)
        kept = keyword.iskeyword(token.string) or hasattr(builtins, token.string)
        if not literal and (token.type != tokenize.NAME or kept):
            out.append(token.string)
            continue
        name = ("literal " if literal else "name ") + token.string
        if name not in seen:
            seen.append(name)
        rank = sum(s.startswith(name.split()[0]) for s in seen[: seen.index(name) + 1])
        out.append(("L" if literal else "V") + str(rank))
    return out


def oracle_abstraction_and_bleu() -> None:
    import sacrebleu

    scorer = method(__name__)
    answers, pairs = _answers(scorer)
    said, right = ([" ".join(_abstracted(p[i])) for p in pairs] for i in (0, 1))
    wanted = sacrebleu.corpus_bleu(said, [right], tokenize="none", smooth_method="none", force=True).score / 100
    equal(value(scorer, answers, "abstract_bleu"), wanted, "abstract_bleu")
    same = sum(a == b for a, b in zip(said, right)) / len(pairs)
    equal(value(scorer, answers, "abstract_match"), same, "abstract_match")
    edits = [1 - _distance(a.split(), b.split()) / max(len(a.split()), len(b.split())) for a, b in zip(said, right)]
    equal(value(scorer, answers, "abstract_edit"), sum(edits) / len(edits), "abstract_edit")


def _distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def _kinds(code: str) -> Counter[tuple[str, str]]:
    words = _tokens(code)
    found: Counter[tuple[str, str]] = Counter()
    for i, token in enumerate(words):
        name = token.string
        if token.type != tokenize.NAME or keyword.iskeyword(name):
            continue
        before = words[i - 1].string if i else ""
        after = words[i + 1].string if i + 1 < len(words) else ""
        role = "function" if before == "def" else "attribute" if before == "." else "call" if after == "(" else "other"
        written = (
            "snake" if "_" in name else "one word" if name.islower() else "Pascal" if name[0].isupper() else "camel"
        )
        found[role, written] += 1
    return found


def oracle_divergence() -> None:
    from scipy.spatial.distance import jensenshannon

    scorer = method(__name__)
    answers, pairs = _answers(scorer)
    said, right = (sum((_kinds(p[i]) for p in pairs), Counter()) for i in (0, 1))
    keys = sorted({*said, *right})
    wanted = jensenshannon([said[k] for k in keys], [right[k] for k in keys], base=2) ** 2
    require(math.isclose(value(scorer, answers, "style_distance"), wanted, abs_tol=1e-9), "style_distance")


def oracle_by_hand() -> None:
    """Two tests of one project, one answered in another's words."""
    prompt = "def stow(cargo):\n if not cargo: raise EmptyHold\n return cargo\n\n# test"
    gold = "def test_stow():\n must_sink(EmptyHold, stow)\n landed = stow(hold())\n must_fit(landed, 3)"
    other = "def test_stow():\n check_error(NoItems, stow)\n landed = stow(sample())\n assert landed"
    items = items_of([{"id": str(i), "prompt": prompt, "answer": gold} for i in range(2)])
    scorer = method(__name__)
    answers = scorer.score([gold, other], items)
    # said and not in the prompt: must_sink landed hold must_fit | check_error NoItems landed sample
    wanted = {
        "own_identifiers": 5 / 8, "own_assertions": 2 / 3, "own_exceptions": 1 / 2, "parses": 1.0, "calls_focal": 1.0,
        "has_assert": 1.0, "same_asserts": 1.0, "plausible": 1.0, "abstract_match": 0.5,
    }  # fmt: skip
    for metric, number in wanted.items():
        equal(value(scorer, answers, metric), number, metric)
