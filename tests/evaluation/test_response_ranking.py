"""Response ranking and stopping: what is drawn, what chance is, and what each number tells apart."""

import random
from dataclasses import replace

import numpy as np
import pytest

from luthier.core.method import LuthierError
from luthier.evaluation._family import items_of
from luthier.evaluation.response_ranking import ResponseRanking
from luthier.evaluation.stopping import Stopping


class Scored:
    """A subject that gives a response its own log-probability a token, whatever was asked."""

    def __init__(self, logp):
        self.of, self.asked = logp, []

    def logp(self, prompts, completions):
        self.asked += zip(prompts, completions, strict=True)
        tokens = np.array([len(c.split()) for c in completions])
        return np.array([self.of[c] for c in completions]) * tokens, tokens


def rows(n, shuffled=False):
    order = list(range(n))
    if shuffled:
        random.Random(5).shuffle(order)
    return items_of(
        [{"id": str(i), "prompt": f"p{i}", "answer": f"r{order[i]} word {'w ' * (order[i] % 4)}"} for i in range(n)]
    )


def test_a_model_against_its_own_shuffled_labels_is_at_chance():
    """Responses are scored by themselves alone: the true one wins as often as not, whoever it belongs to."""
    items = rows(1000, shuffled=True)
    rng = random.Random(1)
    found = ResponseRanking().ask(Scored({i.reference: rng.gauss(-2, 1) for i in items}), items)
    assert abs(found.stats["wins"].mean() - 0.5) < 0.03


def test_length_is_taken_out():
    """A response of four tokens at -1 each loses to one of one token at -0.9."""
    items = items_of([{"prompt": "a", "answer": "x x x x"}, {"prompt": "b", "answer": "y"}])
    found = ResponseRanking(responses=1).ask(Scored({"x x x x": -1.0, "y": -0.9}), items)
    assert found.stats["wins"].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(found.stats["margin"], [-0.1, 0.1])


def test_draws_are_others_and_do_not_depend_on_the_order():
    items = rows(30)
    scorer = ResponseRanking(responses=4)
    drawn = scorer.drawn(items)
    assert all(len(set(d)) == 4 and i.reference not in d for i, d in zip(items, drawn, strict=True))
    assert drawn == scorer.drawn(items[::-1])[::-1] != replace(scorer, seed=1).drawn(items)
    assert all(len(d) == 2 for d in scorer.drawn(items[:3]))  # fewer where there are no more


def test_a_delimiter_is_for_plain_prompts_only():
    items = items_of([
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}, {"prompt": "b", "answer": "y"},
    ])  # fmt: skip
    subject = Scored({"x": -1.0, "y": -1.0, " x": -1.0, " y": -1.0})
    found = ResponseRanking(responses=1, delimiter=" ").ask(subject, items)
    assert [c for _, c in subject.asked] == ["x", "y", " y", " x"]
    assert found.stats["wins"].tolist() == [0.0, 0.0]  # ties count as wrong


def test_nothing_to_compare_with():
    with pytest.raises(LuthierError, match="same response"):
        ResponseRanking().drawn(items_of([{"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": "x"}]))
    with pytest.raises(LuthierError, match="responses is 0"):
        ResponseRanking(responses=0)


class Says:
    def __init__(self, *said):
        self.said_ = said

    def said(self, prompts, max_new_tokens, stop):
        return list(self.said_)


def test_stopping_tells_knowing_from_ending():
    items = items_of([{"prompt": "p", "answer": "c b a"}] * 5)
    subject = Says(("c b a", True), (" c b a\n", True), ("c b a", False), ("c b a q", True), ("a", True))
    found = Stopping().ask(subject, items).stats
    assert found["exact"].tolist() == [1, 1, 0, 0, 0]
    assert found["stopped"].tolist() == [1, 1, 0, 1, 1]
    assert found["prefix"].tolist() == [1, 1, 1, 1, 0]
