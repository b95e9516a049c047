"""A constant prompt around what is asked: instructions, examples in one layout, and what ends and cleans an answer.

    text(q) = system + query(q_1) answer(a_1) + ... + query(q_K) answer(a_K) + query(q) + what stands before an answer

    system    text in front of everything
    query     "# Query: {query} ...": what goes around each question;  answer  "... {answer} ...": around each answer
    stop      strings that begin what no longer belongs to an answer
    examples  (question, answer), the same for all that is asked;  refuses  the places of those that decline to answer

A conversation is its turns in the same layout. Everything up to the question is the same bytes for all questions, so that
a model needs to read it once. A layout file is YAML with these keys; an example in it may say `refuses: true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.core.config import read_yaml
from luthier.core.method import LuthierError

LAYOUTS = Path(__file__).parent / "layouts"
_TEXTS = ("system", "query", "answer")


@dataclass(frozen=True)
class Layout:
    system: str = ""
    query: str = "{query}"
    answer: str = "{answer}"
    stop: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    refuses: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name in ("query", "answer"):
            if getattr(self, name).count(f"{{{name}}}") != 1:
                raise LuthierError(f"layout: '{name}' needs {{{name}}} once, where the {name} goes")

    @property
    def constant(self) -> str:
        """All that stands in front of the first turn, whatever is asked."""
        return self.system + "".join(self._turn(q, a) for q, a in self.examples)

    def prompt(self, asked: str | Sequence[dict[str, Any]]) -> str:
        """A question, or the messages of a conversation that ends in one, as the model reads it."""
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        for i, turn in enumerate(turns):
            if turn.get("role") != ("user", "assistant")[i % 2] or not isinstance(turn.get("content"), str):
                raise LuthierError(
                    f"message {i + 1} is '{turn.get('role')}': this layout takes turns of user and assistant, as text; what a "
                    "system message would say belongs in the layout's `system`"
                )
        if len(turns) % 2 == 0:
            raise LuthierError("nothing is asked: the last message has to be the user's")
        said = [turn["content"] for turn in turns]
        former = "".join(self._turn(q, a) for q, a in zip(said[:-1:2], said[1::2]))
        head = self.answer.partition("{answer}")[0].rstrip(" ")  # a blank before a word belongs to its token
        return self.constant + former + self.query.replace("{query}", said[-1].strip()) + head

    def clean(self, text: str) -> str:
        """An answer without the marks that close it in the layout, and without blanks around it.

        A mark (a fence, say) that answers may hold themselves closes the answer only where it is one too many.
        """
        mark = self.answer.partition("{answer}")[2].strip()
        text = text.strip()
        closes = bool(mark) and text.endswith(mark) and text.count(mark) % 2 == 1
        return text[: -len(mark)].rstrip() if closes else text

    def _turn(self, query: str, answer: str) -> str:
        return self.query.replace("{query}", query.strip()) + self.answer.replace("{answer}", answer.strip())


def layout(told: str | Layout, k: int | None = None, refusals: bool = True) -> Layout:
    """The layout of a file, or of one that comes with luthier by its name; its first `k` examples.

    `refusals`: False leaves out the examples that decline to answer.
    """
    found, name = (told, "the layout") if isinstance(told, Layout) else (_of_file(told), f"'{told}'")
    kept = [e for i, e in enumerate(found.examples) if refusals or i not in found.refuses]
    if k is not None and k > len(kept):
        raise LuthierError(f"{k} examples were asked for, {name} has {len(kept)}: give a smaller k, or more examples")
    return replace(found, examples=tuple(kept[:k]), refuses=found.refuses if refusals else frozenset())


def _of_file(told: str) -> Layout:
    path = LAYOUTS / f"{told}.yaml" if (LAYOUTS / f"{told}.yaml").exists() else Path(told).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(f.stem for f in LAYOUTS.glob("*.yaml")))
        raise LuthierError(f"no layout '{told}': give a file, or one of {known}")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, stamp: int) -> Layout:
    """A layout file with all its examples."""
    told = read_yaml(path)
    if unknown := set(told) - {*_TEXTS, "stop", "examples"}:
        keys = ", ".join((*_TEXTS, "stop", "examples"))
        raise LuthierError(f"{path.name}: unknown key '{min(unknown)}' (known: {keys})")
    examples = told.get("examples") or []
    for i, example in enumerate(examples):
        if not isinstance(example, dict) or not {"query", "answer"} <= set(example) <= {"query", "answer", "refuses"}:
            raise LuthierError(f"{path.name}: example {i + 1} needs query and answer, and may say refuses")
    return Layout(
        **{name: str(told[name]) for name in _TEXTS if name in told},
        stop=tuple(told.get("stop") or ()),
        examples=tuple((str(e["query"]), str(e["answer"])) for e in examples),
        refuses=frozenset(i for i, e in enumerate(examples) if e.get("refuses")),
    )
