"""What every scorer keeps: who knows everything scores best, who guesses scores chance, and nothing depends on batches.

Subjects are puppets that give prepared answers, and real tiny models where batching is looked at. A scorer that cannot
use a kind of subject refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._battery import on, when
from luthier.checks._compare import CheckFailed, require
from luthier.checks._models import model_of
from luthier.checks.data import vocabulary
from luthier.core.method import HEADED, LuthierError, Refusal
from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, items_of

CHOICES = ("0", "1", "2")
N = 240


class Puppet:
    """A subject that answers by `choose(item)`, the index of a choice; it is sure of what it says."""

    def __init__(self, world: World, items: Sequence[Item], choose: Callable[[Item], int]):
        self.task, self.outputs, self.name, self.choose = world.task, world.outputs, "puppet", choose
        self.tokenizer, self.window, self.order = vocabulary("encoder"), None, items
        self.items = {json.dumps(key): i for i in items for key in (i.prompt, i.text)}
        self.model = SimpleNamespace(
            config=SimpleNamespace(id2label=dict(enumerate(CHOICES[: world.outputs])), num_labels=world.outputs)
        )

    def _item(self, asked: Any) -> Item:
        return self.items[json.dumps(asked)]

    def _only(self, task: str) -> None:
        if self.task != task:
            raise Refusal(f"a {self.task} subject was asked for what a {task} subject does")

    def _text(self, item: Item) -> str:
        if item.choices is None:
            return str(item.row.get("completion") or item.reference)
        return CHOICES[self.choose(item)]

    def generate(self, prompts: Sequence[Any], *limits: Any, **more: Any) -> list[str]:
        self._only("causal_lm")
        return [self._text(self._item(p)) for p in prompts]

    def said(self, prompts: Sequence[Any], *limits: Any, **more: Any) -> list[tuple[str, bool]]:
        return [(text, True) for text in self.generate(prompts)]

    def candidates(self, prompts: Sequence[Any], *limits: Any, **more: Any) -> list[list[str]]:
        return [[text] for text in self.generate(prompts)]

    def logp(self, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self._only("causal_lm")
        said = [self._text(self._item(p)).strip() == c.strip() for p, c in zip(prompts, completions, strict=True)]
        return np.where(said, 0.0, -30.0), np.ones(len(said), dtype=int)

    def token_logp(self, texts: Sequence[Any]) -> list[np.ndarray]:
        self._only("causal_lm")
        right = [self.choose(self._item(t)) == self._item(t).label for t in texts]
        return [np.full(3, 0.0 if ok else -30.0, dtype=np.float32) for ok in right]

    def distributions(self, texts: Sequence[Any]) -> Iterator[tuple[int, Tensor]]:
        self._only("causal_lm")
        for i, text in enumerate(texts):
            yield (
                i,
                torch.full((3, len(CHOICES)), -20.0).index_fill_(1, torch.tensor(self.choose(self._item(text))), 0.0),
            )

    def _choice(self, text: Any) -> int:
        """What is said of an item's text; a text that is a choice says itself."""
        return CHOICES.index(text) if text in CHOICES else self.choose(self._item(text))

    def embeddings(self, texts: Sequence[Any], **more: Any) -> np.ndarray:
        return np.eye(len(CHOICES), dtype=np.float32)[[self._choice(t) for t in texts]]

    def tag_probabilities(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """Of all tokens of an item the same is said; the rows are those of the items, in order."""
        self._only("token_classification")
        return [np.eye(self.outputs)[[self.choose(i)] * len(at)] for i, (_, at) in zip(self.order, rows, strict=True)]

    def class_probabilities(self, texts: Sequence[Any]) -> np.ndarray:
        """A pair of an item and a choice is scored by whether that is the choice."""
        self._only("classification")
        if self.outputs == 1 and isinstance(texts[0], tuple):
            return np.array([[float(self._choice(a) == self._choice(b))] for a, b in texts], dtype=np.float32)
        if self.outputs == 1:
            return np.array([[float(self.choose(self._item(t)))] for t in texts], dtype=np.float32)
        return np.eye(len(CHOICES), dtype=np.float32)[[self.choose(self._item(t)) for t in texts]]


@dataclass(frozen=True)
class World:
    """A kind of subject."""

    label: str
    task: str
    outputs: int = len(CHOICES)

    @property
    def classes(self) -> int:
        """How many answers there are to an item; a head with one output tells numbers."""
        return self.outputs if self.task == "token_classification" else len(CHOICES)

    def items(self, method: Any, n: int = N) -> list[Item]:
        own = method.rows()
        if own is not None:
            return items_of(own)
        rows: list[dict[str, Any]] = [
            {
                "id": str(i), "prompt": f"question {'x' * (i % 7)} {i}:", "text": f"text {'y' * (i % 5)} {i}",
                "answer": CHOICES[i % self.classes], "choices": list(CHOICES), "label": i % self.classes,
            }
            for i in range(n)
        ]  # fmt: skip
        if self.task == "token_classification":
            for row in rows:
                words = row["text"].split()
                row |= {"tokens": words, "ner_tags": [row["answer"]] * len(words)}
                row |= {"completions": words, "labels": [row["label"] > 0] * len(words)}
        return items_of(rows)

    def real(self, tokens_per_batch: int) -> Subject:
        """A tiny random model of the kind."""
        layout = "causal" if self.task == "causal_lm" else "encoder"
        name = {"classification": "bert-classifier", "token_classification": "bert-tagger"}.get(self.task, "llama")
        words = vocabulary(layout)
        ids = {
            "pad_token_id": words.pad_token_id,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": words.bos_token_id,
        }
        if self.task in HEADED:
            ids["num_labels"] = self.outputs
        model: Any = model_of(name, vocab_size=len(words), max_position_embeddings=512, **ids)
        model.config.id2label = dict(enumerate(CHOICES[: self.outputs]))
        return Subject(model, words, task=self.task, name="tiny", tokens_per_batch=tokens_per_batch)


def worlds(method: Any) -> list[World]:
    if method.head:
        return [World("head of tokens", method.head, method.outputs or len(CHOICES))]
    return [
        World("language model", "causal_lm"), World("class head", "classification"), World("number head", "classification", 1),
    ]  # fmt: skip


def asked(method: Any, subject: Any, items: list[Item], base: Answers | None = None) -> Answers | None:
    """Answers, or None where the scorer cannot use a subject with this head and says so."""
    try:
        return method.ask(subject, items, base)
    except LuthierError:
        if subject.task in ("causal_lm", method.head):
            raise
        return None


def main_metric(method: Any) -> str:
    return next(iter(method.metrics))


def value(method: Any, answers: Answers, metric: str, weights: np.ndarray | None = None) -> float:
    w = np.ones((1, len(answers))) if weights is None else weights
    return float(method.aggregate(metric, answers)(answers.stats, w)[0])


def _right(item: Item) -> int:
    return int(item.label) if item.label is not None else 0


usual = on(lambda world: world.task in ("causal_lm", "token_classification"))
generic = when(lambda method: method.rows() is None)
shares = when(lambda method: main_metric(method) in method.proportions)


# ------------------------------------------------------------------------------------------------ checks


@usual
def check_metrics(method: Any, world: World) -> None:
    """Every metric that is announced has a value, and the main one comes first in the table of the answers."""
    items = world.items(method)
    answers = method.ask(Puppet(world, items, _right), items)
    table = method.table(answers)
    require(next(iter(table)) == main_metric(method), "the main metric is not the first of the table")
    require(set(method.metrics) <= set(table), "a metric that is announced is missing from the table")
    require(answers.ids == [i.id for i in items], "answers are not in the order of the items")
    for metric in table:
        value(method, answers, metric)
    require(
        all(len(column) == len(items) for column in answers.stats.values()), "a statistic has not one number an item"
    )
    require(not method.sample or method.sample in answers.stats, f"the sample statistic '{method.sample}' is not told")


def check_oracle_is_best(method: Any, world: World) -> None:
    """A subject that knows every answer reaches the best value: of shares 1, or 0 where less is better."""
    items = world.items(method)
    best = asked(method, Puppet(world, items, _right), items)
    if best is None:
        return
    # distances are measured from the base, which is the oracle itself here
    again = method.ask(Puppet(world, items, _right), items, best)
    for metric, up in method.table(again).items():
        if metric in method.proportions:
            found = value(method, again, metric)
            require(found == float(up), f"{metric} of an oracle is {found}")
    if items[0].choices is None:
        require(value(method, again, main_metric(method)) == 1.0, f"{main_metric(method)} of an oracle is not 1")
        return
    rng = np.random.default_rng(0)
    guess = {i.id: int(rng.integers(world.classes)) for i in items}
    poor = method.ask(Puppet(world, items, lambda i: guess[i.id]), items, best)
    metric = main_metric(method)
    up = method.metrics[metric]
    gap = value(method, again, metric) - value(method, poor, metric)
    require(gap > 0 if up else gap < 0, f"{metric} does not prefer an oracle to a guesser (difference {gap:.3g})")


@generic
@shares
def check_chance(method: Any, world: World) -> None:
    """A guesser scores chance: one in three here, within four standard deviations; a stated chance says the same."""
    items = world.items(method)
    rng = np.random.default_rng(1)
    guess = {i.id: int(rng.integers(world.classes)) for i in items}
    answers = asked(method, Puppet(world, items, lambda i: guess[i.id]), items)
    if answers is None:
        return
    found, room = value(method, answers, main_metric(method)), 4 * (2 / 9 / len(items)) ** 0.5
    require(abs(found - 1 / 3) < room, f"{main_metric(method)} of a guesser is {found:.3f}")
    told = answers.floors.get("chance", 1 / 3)
    require(abs(told - 1 / 3) < 1e-9, f"chance is stated as {told:.3f}")
    for name, floor in answers.floors.items():
        require(0 <= floor <= 1, f"floor {name} is {floor}")


def check_batches(method: Any, world: World) -> None:
    """Batches of any size, and any order of the items, give the same statistics and texts."""
    items = world.items(method, 7)[:7]
    if "max_new_tokens" in {f.name for f in fields(method)}:
        method = replace(method, max_new_tokens=4)
    small, large = world.real(60), world.real(4096)
    one = asked(method, small, items)
    if one is None:
        return
    two, turned = method.ask(large, items), method.ask(large, items[::-1])
    for name, column in one.stats.items():
        require(np.allclose(column, two.stats[name], rtol=1e-3, atol=1e-4), f"{name} depends on the batch size")
        require(np.allclose(column, turned.stats[name][::-1], rtol=1e-3, atol=1e-4), f"{name} depends on the order")
    require(one.outputs == two.outputs, "outputs depend on the batch size")


def check_weights(method: Any, world: World) -> None:
    """An item with weight two counts as two items, one with weight zero not at all: resampling rests on it."""
    items = world.items(method, 60)[:60]
    rng = np.random.default_rng(3)
    guess = {i.id: int(rng.integers(world.classes)) for i in items}
    best = asked(method, Puppet(world, items, _right), items)
    if best is None:
        return
    answers = method.ask(Puppet(world, items, lambda i: guess[i.id]), items, best)
    counts = rng.integers(0, 3, len(items))
    at = np.repeat(np.arange(len(items)), counts)
    repeated = Answers(
        [answers.ids[i] for i in at],
        {k: v[at] for k, v in answers.stats.items()},
        names=answers.names,
        keep=answers.keep,
    )
    for metric in method.table(answers):
        weighted, written = value(method, answers, metric, counts[None].astype(float)), value(method, repeated, metric)
        # equal-count bins may cut between copies of one item, so those two ways differ by at most one item's share
        room = 2.5 / len(at) if metric not in answers.stats and "mass" in metric else 1e-9 * max(1.0, abs(written))
        same = abs(weighted - written) <= room or (np.isnan(weighted) and np.isnan(written))
        require(same, f"{metric}: {weighted} by weights, {written} with items repeated")


@generic
def check_missing_column(method: Any, world: World) -> None:
    """Rows without what the scorer reads are an error that names row and column, in one line."""
    try:
        method.ask(Puppet(world, [], _right), items_of([{"id": "r7", "note": "nothing to score"}]))
    except LuthierError as error:
        require("\n" not in str(error), "the error is longer than a line")
        return
    except Exception as error:
        raise CheckFailed(f"{type(error).__name__} instead of one clear error: {error}") from None
    raise CheckFailed("a row without any column that it reads was scored")
