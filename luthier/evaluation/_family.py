"""What scorers share: items from rows, answers of a subject, metrics as functions of weighted items, text normalising.

A scorer asks a subject about items and returns `Answers`: one number per item and statistic. A metric is computed
from these statistics and weights by `aggregate`, so that it can be resampled; base and tuned are compared item by
item.

n items, R resamples (rows of weights).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import Evaluator, LuthierError, Refusal
from luthier.core.subject import Prompt, Subject, plain_model

Stats = dict[str, NDArray]
Aggregate = Callable[[Stats, NDArray], NDArray]

# -------------------------------------------------------------------------------------------------------- items


@dataclass
class Item:
    """One question. What a row does not have is None: a `Prompt`, a text or a pair of texts, choices, a label."""

    id: str
    prompt: Any = None
    reference: str | None = None
    accepted: tuple[str, ...] = ()
    text: Any = None
    choices: tuple[str, ...] | None = None
    label: Any = None
    cluster: Any = None
    row: dict[str, Any] = field(default_factory=dict)


_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_REFERENCES = ("answer", "completion", "reference", "output", "response", "target", "chosen")
_TEXTS = ("text", "sentence", "document", "content")
_CHOICES = ("choices", "options", "endings")
_LABELS = ("label", "gold", "answer_index", "answerKey")


def items_of(
    rows: Sequence[dict[str, Any]], template: str | None = None, columns: dict[str, str] | None = None
) -> list[Item]:
    """Rows to items. `template` makes the prompt from a row's columns: "Q: {question}\\nA:"; `columns` renames them."""
    found = [
        _item({**row, **{k: row[v] for k, v in (columns or {}).items()}}, i, template) for i, row in enumerate(rows)
    ]
    if len({item.id for item in found}) < len(found):
        for i, item in enumerate(found):
            item.id = f"{item.id}#{i}"
    return found


def _item(row: dict[str, Any], index: int, template: str | None) -> Item:
    prompt, reference = _conversation(row)
    if template is not None:
        prompt = template.format_map(row)
    if prompt is None:
        prompt = _first(row, _PROMPTS)
        if prompt is not None and row.get("instruction") and row.get("input"):
            prompt = f"{row['instruction']}\n{row['input']}"
    if reference is None:
        reference = _first(row, _REFERENCES)
    accepted = (
        tuple(map(str, reference))
        if isinstance(reference, list | tuple)
        else ()
        if reference is None
        else (str(reference),)
    )
    text, second = _first(row, _TEXTS), row.get("text_pair")
    choices = _first(row, _CHOICES)
    if isinstance(choices, dict):  # {"text": [...], "label": [...]}
        choices = choices["text"]
    return Item(
        id=str(row.get("id", index)), prompt=prompt, reference=accepted[0] if accepted else None, accepted=accepted,
        text=(text, second) if text is not None and second is not None else text,
        choices=tuple(map(str, choices)) if choices is not None else None,
        label=_first(row, _LABELS), cluster=row.get("cluster", row.get("group")), row=dict(row),
    )  # fmt: skip


def _conversation(row: dict[str, Any]) -> tuple[Any, Any]:
    """Prompt and reference of a row of messages; the last assistant turn is the reference."""
    messages = row.get("messages") or row.get("conversations")
    if messages:
        if messages[-1].get("role") == "assistant":
            return messages[:-1], messages[-1]["content"]
        return messages, None
    completion = row.get("completion")
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        return row.get("prompt"), row.get("answer", completion[-1]["content"])
    return None, None


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    return next((row[n] for n in names if row.get(n) is not None), None)


def need(items: Sequence[Item], what: str, scorer: str) -> None:
    """An error that names the first row which lacks what a scorer reads."""
    for item in items:
        if getattr(item, what) is None:
            columns = ", ".join(sorted(item.row))
            raise LuthierError(f"{scorer}: row {item.id} has no {what} (columns: {columns}); map one with `columns`")


def shown(prompt: Prompt | tuple[str, str] | None) -> str:
    """A prompt as one text, for samples."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n".join(p if isinstance(p, str) else f"{p['role']}: {p['content']}" for p in prompt)


# ------------------------------------------------------------------------------------------------------ answers


@dataclass
class Answers:
    """What one subject answered: statistics (n,) by name, and the texts behind them.

    keep   what the scorer wants to find again when the tuned model is asked (the base's distributions, say)
    names  class names, where statistics hold class indices
    notes  what else is told of each item (a judge's reasons, say), as plain values
    """

    ids: list[str]
    stats: Stats
    prompts: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    clusters: list[Any] | None = None
    floors: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    keep: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    def without_texts(self) -> Answers:
        """The numbers alone."""
        none = [""] * len(self)
        return replace(self, prompts=none, references=none, outputs=none, notes=[])


def weighted_mean(values: NDArray, weights: NDArray) -> NDArray:
    """(n,) and (R, n) to (R,)."""
    return weights @ values / weights.sum(1)


def ratio(a: NDArray, b: NDArray) -> NDArray:
    """a / b (R,), 0 where b is."""
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def head_names(subject: Subject) -> list[str]:
    """Class names of a task head, in the order of its outputs."""
    known = plain_model(subject.model).config.id2label
    return [str(known[k]) for k in sorted(known)]


class Scorer(Evaluator):
    """Base of all scorers.

    metrics      name -> True if higher is better; the first is the main one
    proportions  metrics that are means of 0/1 statistics of the same name: Wilson intervals and McNemar's test
    units        unit of a metric that has one
    sample       the statistic shown as an item's score; empty: an item has no answer to show
    keep_texts   whether prompts and outputs may be written anywhere
    head         the task head without which it has nothing to read; empty: it asks language models too
    outputs      how many outputs that head must have; 0: any number
    """

    head: ClassVar[str] = ""
    outputs: ClassVar[int] = 0

    proportions: ClassVar[frozenset[str]] = frozenset()
    units: ClassVar[dict[str, str]] = {}
    sample: ClassVar[str] = ""
    keep_texts: bool = True

    def rows(self) -> list[dict[str, Any]] | None:
        """Rows of scorers that bring their own."""
        return None

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        """Ask the subject. `base` are the answers of the base model on the same items, if it was asked before."""
        raise NotImplementedError

    def outputs_of(self, subject: Subject) -> list[str]:
        """What the outputs of the head are called that the scorer reads. Refuses another head, or another number of them."""
        if subject.task != self.head:
            raise Refusal(f"{self.name} reads a {self.head} head, this subject is a {subject.task}")
        names = head_names(subject)
        if self.outputs and len(names) != self.outputs:
            raise Refusal(f"{self.name} reads a head with {self.outputs} outputs, this one has {len(names)}")
        return names

    def table(self, answers: Answers) -> dict[str, bool]:
        """Metrics of these answers: `metrics`, and more where they depend on the data (one per class, say)."""
        return dict(self.metrics)

    def decomposes(self, metric: str, answers: Answers) -> bool:
        """Whether the metric is the mean of the statistic of the same name."""
        return metric in answers.stats

    def aggregate(self, metric: str, answers: Answers) -> Aggregate:
        """Statistics and weights (R, n) to the metric (R,). By default the mean of the statistic of that name."""
        return lambda stats, weights: weighted_mean(stats[metric], weights)

    def verdict(self, metric: str, low: float, high: float) -> str | None:
        """A verdict by the difference's interval, for metrics on which no test is meaningful. None: use the test."""
        return None

    def details(self, answers: Answers) -> dict[str, Any] | None:
        """A section of the results for this scorer alone."""
        return None

    def answers(self, items: Sequence[Item], stats: dict[str, Any], outputs: Sequence[str], **more: Any) -> Answers:
        """Answers with what samples show."""
        clusters = [i.cluster for i in items] if any(i.cluster is not None for i in items) else None
        return Answers(
            [i.id for i in items], {k: np.asarray(v, dtype=float) for k, v in stats.items()},
            [shown(i.prompt if i.prompt is not None else i.text) for i in items],
            [i.reference if i.reference is not None else str(i.label if i.label is not None else "") for i in items],
            list(outputs), clusters, **more,
        )  # fmt: skip


class TextScorer(Scorer):
    """Scorers that read a generated text; what was generated can be scored again by another one.

    A method has the fields `max_new_tokens` and `stop`, and gives `judge`.
    """

    max_new_tokens: int
    stop: tuple[str, ...]

    def judge(self, output: str, item: Item) -> dict[str, float]:
        """Statistics of one output."""
        raise NotImplementedError

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        need(items, "prompt", self.name)
        self.check(items)
        return self.score(subject.generate([i.prompt for i in items], self.max_new_tokens, self.stop), items)

    def check(self, items: Sequence[Item]) -> None:
        need(items, "reference", self.name)

    def score(self, outputs: Sequence[str], items: Sequence[Item]) -> Answers:
        """Answers from outputs that are there already."""
        judged = [self.judge(o, i) for o, i in zip(outputs, items, strict=True)]
        stats = {k: [j[k] for j in judged] for k in (judged[0] if judged else {})}
        return self.answers(items, stats, outputs, floors=self._constant(items))

    def _constant(self, items: Sequence[Item]) -> dict[str, float]:
        """Score of giving always the most frequent reference."""
        references = [i.reference for i in items if i.reference is not None]
        if len(references) < 2:
            return {}
        often = max(set(references), key=lambda r: (references.count(r), r))
        return {f"always '{often[:40]}'": float(np.mean([self.accepts(often, i) for i in items]))}

    def accepts(self, reference: str, item: Item) -> bool:
        """Whether another item's reference would be right here, however an answer is found in an output."""
        return bool(self.judge(reference, item)[next(iter(self.metrics))])


# ------------------------------------------------------------------------------------------------- text equality

_UNITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
          "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
          "seventeen": 17, "eighteen": 18, "nineteen": 19}  # fmt: skip
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ARTICLES = {"a", "an", "the"}
_MEASURES = frozenset(
    re.findall(
        r"\w+",
        """
    kg kilogram kilograms g gram grams lb lbs pound pounds ounce ounces oz ton tons tonnes cm mm km m meter meters
    metre metres kilometer kilometers mile miles foot feet ft inch inches yard yards second seconds minute minutes
    hour hours day days week weeks month months year years old dollar dollars usd euro euros eur cent cents percent
    degree degrees celsius fahrenheit liter liters litre litres ml mph kmh
    """,
    )
)
_NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
_FIGURES = re.compile(r"^\d+([.,:/-]\d+)+$")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; number words as digits, 1,234 as 1234, $5 and 5% as 5."""
    text = unicodedata.normalize("NFKC", text).lower().replace("−", "-")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    words = [_bare(w) for w in text.split()]
    return _digits([w for w in words if w and w not in _ARTICLES])


def _bare(word: str) -> str:
    """A word without its punctuation; a number keeps its sign and decimal point."""
    inner = word.strip(string.punctuation.replace("-", "") + "“”‘’«»…–—")
    if _NUMBER.match(inner) or _FIGURES.match(inner):
        return inner
    return "".join(c for c in inner if not unicodedata.category(c).startswith(("P", "S")))


def _digits(words: list[str]) -> list[str]:
    """Runs of number words become one number: "one hundred and five" -> "105"."""
    out: list[str] = []
    i = 0
    while i < len(words):
        end, number = _read_number(words, i)
        out.append(str(number) if end > i else words[i])
        i = max(end, i + 1)
    return out


def _read_number(words: list[str], start: int) -> tuple[int, int]:
    """(index after the number that starts here, its value); the index is `start` where there is none."""
    total = part = 0
    i, last = start, ""
    while i < len(words):
        w = words[i]
        if w in _UNITS and last in ("", "tens", "scale") and not (last == "tens" and _UNITS[w] > 9):
            part, last = part + _UNITS[w], "unit"
        elif w in _TENS and last in ("", "scale"):
            part, last = part + _TENS[w], "tens"
        elif w in _SCALES and last in ("unit", "tens", "scale"):
            scale = _SCALES[w]
            total, part = (total, part * scale) if scale == 100 else (total + part * scale, 0)
            last = "scale"
        elif (
            w == "and" and last == "scale" and i + 1 < len(words) and (words[i + 1] in _UNITS or words[i + 1] in _TENS)
        ):
            pass
        else:
            break
        i += 1
    return i, total + part


def _without_units(words: list[str]) -> list[str]:
    """Drop unit words that follow a number."""
    out: list[str] = []
    after_number = False
    for w in words:
        if after_number and w in _MEASURES:
            continue
        out.append(w)
        after_number = bool(_NUMBER.match(w))
    return out


def same(gold: str, said: str) -> bool:
    """Equal up to case, punctuation, articles and number words; a unit that only one side names does not count."""
    a, b = words_of(gold), words_of(said)
    if a == b:
        return bool(a) or gold.strip() == said.strip()
    bare_a, bare_b = _without_units(a), _without_units(b)
    return bool(bare_a) and bare_a == bare_b and (a == bare_a or b == bare_b)


def contains(gold: str, said: str) -> bool:
    """Whether the words of `gold` stand in `said` next to each other; "126" is not in "1260"."""
    a, b = words_of(gold), words_of(said)
    return bool(a) and any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1))


_MARK = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*(.+)", re.IGNORECASE)


def short_answer(text: str) -> str:
    """The part of an output that is meant as the answer: after "answer is" / "Answer:", else the first line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    for line in lines:
        found = _MARK.search(line)
        if found:
            return found.group(1).strip().rstrip(".!")
    return lines[0].rstrip(".!") if lines else ""


# ------------------------------------------------------------------------------------------------------ choices


def choice_logp(subject: Subject, items: Sequence[Item], delimiter: str = " ") -> list[NDArray]:
    """log p(choice | prompt) of every choice of every item."""
    prompts, completions = [], []
    for item in items:
        for choice in item.choices or ():
            prompts.append(item.prompt)
            completions.append(joined(item.prompt, choice, delimiter))
    logp, _ = subject.logp(prompts, completions)
    ends = np.cumsum([len(item.choices or ()) for item in items])
    return np.split(logp, ends[:-1]) if len(items) else []


def joined(prompt: Prompt | None, choice: str, delimiter: str) -> str:
    """The choice as it follows the prompt."""
    blank = not isinstance(prompt, str) or not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if blank else delimiter + choice


def right_choice(item: Item) -> int:
    """Index of the right choice: from a label (index, letter or text) or from the reference's text."""
    choices = item.choices or ()
    label = item.label if item.label is not None else item.reference
    if isinstance(label, bool | int | np.integer) and 0 <= int(label) < len(choices):
        return int(label)
    text = str(label).strip()
    for i, choice in enumerate(choices):
        if choice.strip() == text:
            return i
    keys = [*string.ascii_uppercase[: len(choices)]]
    if text.upper() in keys:
        return keys.index(text.upper())
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    raise LuthierError(f"row {item.id}: label {label!r} is none of its {len(choices)} choices")


def softmax(scores: NDArray) -> NDArray:
    """Over the last axis."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def class_scores(
    subject: Subject, items: Sequence[Item], labels: Sequence[str], delimiter: str
) -> tuple[NDArray, list[str], list[int]]:
    """Probabilities (n, C), class names and right classes (n,), from a task head or from verbalised labels.

    A head names its classes by the model's `id2label`. A language model ranks `labels` as completions of the prompt (of
    the text, where there is no prompt).
    """
    if subject.task == "classification":
        need(items, "text", "a class head")
        p = subject.class_probabilities([i.text for i in items])
        names = head_names(subject)
    else:
        need([i for i in items if i.prompt is None], "text", "verbalised labels")
        names = list(labels) or sorted({str(i.label if i.label is not None else i.reference) for i in items})
        asked = [Item(i.id, i.prompt if i.prompt is not None else str(i.text), choices=tuple(names)) for i in items]
        p = softmax(np.stack(choice_logp(subject, asked, delimiter)))
    return p, names, [_class_index(i, names) for i in items]


def _class_index(item: Item, names: Sequence[str]) -> int:
    label = item.label if item.label is not None else item.reference
    text = str(label).strip()
    if text in names:
        return list(names).index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise LuthierError(f"row {item.id}: label {label!r} is none of the classes {', '.join(names)}")
