"""The trie: nothing but lists of different labels, whatever the model says; prefixes, exhaustion, room, tokenizers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tiny_models import gpt2, llama, t5

from luthier.core.method import Limits, LuthierError
from luthier.core.subject import Subject
from luthier.decoding.trie import Trie
from luthier.reproductions.tuners._sectors import LABELS
from luthier.sandbox import tokenizer

SETS = ((11, 25), (11, 25, 30), (12,), (64, 12), (64, 12, 11))
SEP, STOP = 50, 3
TRIE = Trie(sequences=SETS, separator_id=SEP)
LIMITS = Limits(max_new_tokens=20, stop_ids=(STOP,))


def parsed(ids: list[int]) -> list[tuple[int, ...]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        parts.append([]) if token == SEP else parts[-1].append(token)
    return [tuple(p) for p in parts]


def walk(trie: Trie, limits: Limits, rng: random.Random) -> tuple[list[int], bool]:
    """A model that says anything that it may."""
    said: list[int] = []
    while len(said) < limits.max_new_tokens:
        may = trie.allowed(said, limits)
        if not may:
            return said, False
        token = rng.choice(may)
        if token in limits.stop_ids:
            return said, True
        said.append(token)
    return said, False


def test_ten_thousand_random_walks_are_lists_of_different_labels() -> None:
    rng, everything, seen = random.Random(0), set(), set()
    for _ in range(10_000):
        limits = replace(LIMITS, max_new_tokens=rng.randint(1, 20))
        said, stopped = walk(TRIE, limits, rng)
        labels = parsed(said)
        assert set(labels) <= set(SETS) and len(set(labels)) == len(labels)
        assert stopped or len(said) == limits.max_new_tokens
        everything.update(labels)
        seen.add(len(labels))
    assert everything == set(SETS)
    assert seen == {1, 2, 3, 4, 5}


def test_all_labels_said_forces_the_stop() -> None:
    said = [t for label in SETS for t in (*label, SEP)][:-1]
    assert TRIE.allowed(said, replace(LIMITS, max_new_tokens=99)) == [STOP]


def test_a_said_label_that_begins_another_leaves_only_the_longer_one() -> None:
    assert TRIE.allowed([11, 25, SEP, 11, 25], LIMITS) == [30]
    assert TRIE.allowed([11, 25], LIMITS) == [STOP, 30, SEP]


def test_no_label_is_begun_that_has_no_room() -> None:
    assert TRIE.allowed([], Limits(max_new_tokens=1, stop_ids=(STOP,))) == [12]
    assert TRIE.allowed([11, 25], Limits(max_new_tokens=3, stop_ids=(STOP,))) == [STOP, 30]  # SEP and a label are two
    assert TRIE.allowed([11, 25], Limits(max_new_tokens=4, stop_ids=(STOP,))) == [STOP, 30, SEP]
    assert TRIE.allowed([12], Limits(max_new_tokens=3, stop_ids=(STOP,))) == [STOP]  # the only short label is said


@pytest.mark.parametrize("model", [llama, gpt2, t5])
@pytest.mark.parametrize("beams", [1, 4])
def test_untrained_models_never_leave_the_trie(model, beams: int) -> None:
    trie = replace(TRIE, num_beams=beams, length_penalty=0.0)
    prompts = [[7, 8, 9], [20], [33, 44], [90, 91, 92, 93]]
    for room in (3, 20):
        for g in trie.generate(model(), prompts, replace(LIMITS, max_new_tokens=room)):
            labels = parsed(g.ids)
            assert set(labels) <= set(SETS) and len(set(labels)) == len(labels)


def test_a_token_without_alternative_costs_nothing() -> None:
    logp = torch.randn(2, 96).log_softmax(-1)
    said = [[11], [64]]  # one child each
    assert TRIE.worth(logp, said, LIMITS)[0, 25] == logp[0, 25]
    worth = replace(TRIE, score="allowed").worth(logp, said, LIMITS)
    assert worth[0, 25] == 0 and worth[1, 12] == 0
    assert torch.isinf(worth).sum() == worth.numel() - 2
    free = replace(TRIE, score="allowed").worth(logp[:1], [[]], LIMITS)
    assert free[0].exp().sum() == pytest.approx(1.0)


def test_labels_as_text() -> None:
    words = tokenizer()
    trie = Trie(labels=LABELS).for_tokenizer(words)
    assert [words.decode(s) for s in trie.sequences] == [f" {label}" for label in LABELS]
    assert words.decode([trie.separator_id]) == ";"
    with pytest.raises(LuthierError, match="is 2 tokens"):
        Trie(labels=LABELS, separator="; ").for_tokenizer(words)
    with pytest.raises(LuthierError, match="otherwise than alone"):
        Trie(labels=("food", "work"), prefix="", separator=" ").for_tokenizer(words)


def test_a_subject_speaks_in_labels() -> None:
    from luthier import sandbox

    model, words = sandbox.load("nano-1m")
    said = Subject(model, words, decoder=Trie(labels=LABELS, num_beams=2)).generate(["the king saw =>", "x ="], 12)
    for text in said:
        labels = [part.strip() for part in text.split(";")]
        assert set(labels) <= set(LABELS) and len(set(labels)) == len(labels)


def test_refusals() -> None:
    with pytest.raises(LuthierError, match="twice"):
        Trie(labels=("a", "a"))
    with pytest.raises(LuthierError, match="separator"):
        Trie(sequences=((1, SEP),), separator_id=SEP)
    with pytest.raises(LuthierError, match="no labels"):
        Trie().generate(llama(), [[7]], LIMITS)
