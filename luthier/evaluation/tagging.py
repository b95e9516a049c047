"""Tagging: the classes of words, and the spans that they spell, as names in a text are counted.

    precision = hits / spans said       recall = hits / spans meant       f1 = 2 hits / (spans said + spans meant)
    accuracy  = words with the right class / words

A span is a run of words of one type: B-X begins one, I-X goes on with it (or begins one where nothing of type X came before),
O is outside; E-, L- end a span and S-, U- are one of a single word. A hit has the same first word, last word and type.
Classes without such a beginning (parts of speech) make one span of each word, and O none: without O f1 is then the accuracy.
f1_X is that of one type.
    tag_column  which column holds the tags, where rows have several
A word beyond the model's window, or without a token of its own, is said to be of the class outside, or of none.
Chance:     the most frequent class for every word, by accuracy.
Cost:       one forward an item.
Paper:      Tjong Kim Sang and De Meulder, 2003, "Introduction to the CoNLL-2003 Shared Task", section 2.3. seqeval is the oracle.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from luthier.core.method import LuthierError, RowError
from luthier.core.subject import Subject
from luthier.core.tags import text_of_words, tokens_of, words_and_tags
from luthier.evaluation._family import Aggregate, Answers, Item, Scorer, ratio

OUTSIDE = "O"
Span = tuple[str, int, int]
"""Type, first word, last word."""


@dataclass(frozen=True)
class Tagging(Scorer):
    paper: ClassVar[str] = "Tjong Kim Sang and De Meulder, 2003"
    cards: ClassVar[tuple[int, ...]] = (33,)
    head: ClassVar[str] = "token_classification"
    metrics: ClassVar[dict[str, bool]] = {"f1": True, "precision": True, "recall": True, "accuracy": True}
    sample: ClassVar[str] = "accuracy"
    tag_column: str = "auto"

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        names = self.outputs_of(subject)
        known = [self._meant(item, names) for item in items]
        words, meant = [w for w, _ in known], [t for _, t in known]
        said = self._said(subject, words, meant, names)
        stats, types = counts(meant, said)
        tags = [tag for row in meant for tag in row if tag is not None]
        most = max(sorted(set(tags)), key=tags.count)
        floors = {f"always '{most}' (accuracy)": tags.count(most) / len(tags)}
        answers = self.answers(items, stats, _written(words, said), names=types, floors=floors)
        answers.prompts, answers.references = [" ".join(w) for w in words], _written(words, meant)
        return answers

    def _meant(self, item: Item, names: Sequence[str]) -> tuple[list[str], list[str | None]]:
        """The words of an item and the class of each by name; None where a word is not asked about."""
        try:
            words, tags = words_and_tags(item.row, self.tag_column)
        except RowError as error:
            raise LuthierError(f"{self.name}: row {item.id}: {error}") from None
        told = [None if t is None else str(t) if str(t) in names or not isinstance(t, int) else names[t] for t in tags]
        for tag in told:
            if tag is not None and tag not in names:
                raise LuthierError(f"{self.name}: row {item.id}: tag '{tag}' is none of {', '.join(names)}")
        return words, told

    def _said(
        self, subject: Subject, words: Sequence[list[str]], meant: Sequence[list[str | None]], names: Sequence[str]
    ) -> list[list[str | None]]:
        """What the head says of each word that is asked about: the class of its first token."""
        placed = [tokens_of(*text_of_words(row), "begin", subject.tokenizer, subject.window) for row in words]
        at = [[tokens[0] for tokens in row if tokens] for _, row in placed]
        found = subject.tag_probabilities([(e["input_ids"], t) for (e, _), t in zip(placed, at)])
        default, out = OUTSIDE if OUTSIDE in names else None, []
        for asked, (_, row), p in zip(meant, placed, found, strict=True):
            best = iter(p.argmax(-1))
            told = [names[next(best)] if tokens else default for tokens in row]
            out.append([t if a is not None else None for a, t in zip(asked, told, strict=True)])
        return out

    def table(self, answers: Answers) -> dict[str, bool]:
        return {**self.metrics, **{f"f1_{name}": True for name in answers.names}}

    def decomposes(self, metric: str, answers: Answers) -> bool:
        return False

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        if metric == "accuracy":
            return lambda stats, w: ratio(w @ stats["right"], w @ stats["words"])
        of = metric.removeprefix("f1_") if metric.startswith("f1_") else ""

        def value(stats: dict[str, NDArray], w: NDArray) -> NDArray:
            hits, said, meant = (w @ stats[f"{what}{of}"] for what in ("hits:", "said:", "meant:"))
            if metric in ("precision", "recall"):
                return ratio(hits, said if metric == "precision" else meant)
            return ratio(2 * hits, said + meant)

        return value


def _written(words: Sequence[list[str]], tags: Sequence[list[str | None]]) -> list[str]:
    return [" ".join(f"{w}/{t}" if t else w for w, t in zip(*pair, strict=True)) for pair in zip(words, tags)]


def counts(
    meant: Sequence[Sequence[str | None]], said: Sequence[Sequence[str | None]]
) -> tuple[dict[str, Any], list[str]]:
    """Statistics of each row, by type ("" for all of them), and the types."""
    spelled = any(_split(tag)[0] for row in meant for tag in row if tag)
    pairs = [(set(spans(a, spelled)), set(spans(b, spelled))) for a, b in zip(meant, said, strict=True)]
    types = sorted({s[0] for pair in pairs for part in pair for s in part})
    stats: dict[str, Any] = {}
    for of in ("", *types):
        of_type = [tuple({s for s in part if of in ("", s[0])} for part in pair) for pair in pairs]
        stats[f"hits:{of}"] = [len(a & b) for a, b in of_type]
        stats[f"said:{of}"] = [len(b) for _, b in of_type]
        stats[f"meant:{of}"] = [len(a) for a, _ in of_type]
    stats["right"] = [
        sum(x is not None and x == y for x, y in zip(a, b, strict=True)) for a, b in zip(meant, said, strict=True)
    ]
    stats["words"] = [sum(x is not None for x in a) for a in meant]
    stats["accuracy"] = [r / max(w, 1) for r, w in zip(stats["right"], stats["words"])]
    return stats, types


def spans(tags: Sequence[str | None], spelled: bool) -> list[Span]:
    """The spans of a row of classes; one for each word where classes spell none (`spelled` is False)."""
    if not spelled:
        return [(tag, k, k) for k, tag in enumerate(tags) if tag not in (None, OUTSIDE)]
    out: list[Span] = []
    before, running = ("O", ""), -1  # class of the word before, first word of the span that it is in
    for k, tag in enumerate([*tags, None]):
        now = _split(tag)
        if running >= 0 and (now[0] in ("", "B", "S", "U") or now[1] != before[1] or before[0] in ("E", "L", "S", "U")):
            out.append((before[1], running, k - 1))
            running = -1
        if running < 0 and now[0]:
            running = k
        before = now
    return out


def _split(tag: str | None) -> tuple[str, str]:
    """("B", "PER") of B-PER; nothing before the type where a class begins or continues no span."""
    head, dash, kind = (tag or OUTSIDE).partition("-")
    return (head, kind) if dash and head in ("B", "I", "E", "L", "S", "U") else ("", tag or OUTSIDE)
