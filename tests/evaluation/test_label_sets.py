"""Sets of labels: separators, wrong labels, thresholds; embeddings are means over tokens, whatever the batch."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier import sandbox
from luthier.core import catalog
from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._family import items_of

MULTILABEL, NEIGHBOURS = (catalog.load("evaluation", n).example() for n in ("multilabel", "neighbours"))


class Says:
    """A language model that says one text."""

    task = "causal_lm"

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, prompts, *limits) -> list[str]:
        return [self.text] * len(prompts)


def exact(said: str, labels: list[str], names: tuple[str, ...]) -> tuple[float, float]:
    scorer = replace(MULTILABEL, labels=names)
    answers = scorer.ask(Says(said), items_of([{"text": "x", "labels": labels}]))
    return float(answers.stats["exact"][0]), float(answers.stats["jaccard_samples"][0])


def test_labels_are_compared_whole() -> None:
    names = ("Media", "Social Media")
    assert exact(" Social Media", ["Media"], names) == (0.0, 0.0)  # the substring is no answer
    assert exact(" Media; Social Media", ["Social Media", "Media"], names) == (1.0, 1.0)
    assert exact(" Media; Media", ["Media"], names) == (1.0, 1.0)
    assert exact(" Media; Print", ["Media"], names) == (0.0, 0.5)  # an invented label is a wrong one
    assert exact("", [], names) == (1.0, 1.0)


def test_gold_label_outside_the_set_is_an_error() -> None:
    with pytest.raises(LuthierError, match="none of Media"):
        exact("Media", ["Print"], ("Media",))


def test_embeddings_are_means_of_final_states() -> None:
    texts = ["the king saw the soup", "a drum", "the nurse lost the map and the ship in the harbour"]
    for name, task in (("nano-1m", "causal_lm"), ("nano-encoder", "masked_lm"), ("nano-seq2seq", "seq2seq_lm")):
        model, words = sandbox.load(name)
        found = Subject(model, words, task=task).embeddings(texts)
        small = Subject(model, words, task=task, tokens_per_batch=4).embeddings(texts)
        assert np.allclose(found, small, atol=1e-4)
        ids = torch.tensor([words(texts[2])["input_ids"]])
        with torch.no_grad():
            if task == "seq2seq_lm":
                states = model.encoder(input_ids=ids).last_hidden_state
            else:
                states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        assert np.allclose(found[2], states[0].mean(0).numpy(), atol=1e-4)


def test_an_item_does_not_vote_for_itself() -> None:
    rows = [{"text": t, "label": label} for t, label in (("soup", "a"), ("soup", "b"), ("drum", "a"), ("drum", "b"))]
    model, words = sandbox.load("nano-1m")
    answers = replace(NEIGHBOURS, k=1).ask(Subject(model, words), items_of(rows))
    assert answers.outputs == ["b", "a", "b", "a"]


def test_shots_stand_in_front_of_a_text_as_written() -> None:
    class Hears(Says):
        window = 8

        def encode(self, text: str, special: bool = True) -> list[str]:
            return text.split()

        def generate(self, prompts, *limits) -> list[str]:
            self.heard = list(prompts)
            return super().generate(prompts)

    train = [{"text": f"t{i}", "labels": ["a", "b"][: i + 1]} for i in range(2)]
    scorer = replace(MULTILABEL, labels=("a", "b"), train=train, shots=2, max_new_tokens=1, shown="{text}: {labels}")
    subject = Hears(" a")
    items = items_of([{"text": "x", "labels": ["a"]}], template="{text}:")
    assert scorer.ask(subject, items).stats["exact"].tolist() == [1.0]
    assert sorted(subject.heard[0].split("\n")) == ["t0: a", "t1: a; b", "x:"]
    assert subject.heard[0].endswith("\nx:")
    with pytest.raises(LuthierError, match="shots are rows of train"):
        replace(MULTILABEL, shots=1)


def test_compression_needs_no_model_and_finds_what_repeats() -> None:
    train = [{"text": t, "label": t[:3]} for t in ("the quick brown fox jumps", "lorem ipsum dolor sit amet")]
    scorer = replace(NEIGHBOURS, train=train, k=1, distance="gzip")
    items = items_of([{"text": "dolor sit amet lorem", "label": "lor"}, {"text": "a brown fox jumps", "label": "the"}])
    assert scorer.ask(None, items).outputs == ["lor", "the"]
    found = scorer.texts(items, items_of(train))
    for i, item in enumerate(items):
        for j, row in enumerate(train):
            a, b, both = (
                len(gzip.compress(t.encode())) for t in (item.text, row["text"], f"{item.text} {row['text']}")
            )
            assert found[i, j] == (both - min(a, b)) / max(a, b)
    assert replace(scorer, train=None).ask(None, items_of(train)).outputs == ["lor", "the"]  # each by the other
