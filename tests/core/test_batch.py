"""Collating, packing, trees and plans: properties that hold for any examples."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.batch import (
    GroupExample,
    Plan,
    TextExample,
    collate_groups,
    collate_packed,
    collate_text,
    pack,
    positions_from_mask,
)

tokens = st.lists(st.integers(1, 50), min_size=1, max_size=7)
fast = settings(max_examples=60, deadline=None)


@st.composite
def texts(draw):
    ids = draw(st.lists(tokens, min_size=1, max_size=6))
    return [
        TextExample(row, i, draw(st.lists(st.booleans(), min_size=len(i), max_size=len(i))))
        for row, i in enumerate(ids)
    ]


@st.composite
def groups(draw):
    return [
        GroupExample(row, draw(tokens), draw(st.lists(tokens, min_size=1, max_size=3)))
        for row in range(draw(st.integers(1, 4)))
    ]


def scored(batch):
    """(owner, position of the source in its own sequence, target) of each scored token."""
    positions = (
        batch.positions if batch.positions is not None else torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    )
    return list(zip(batch.owner.tolist(), positions.flatten()[batch.source].tolist(), batch.target.tolist()))


@given(texts(), st.sampled_from(["right", "left"]))
@fast
def test_text(examples, side) -> None:
    batch = collate_text(examples, 0, side)
    assert [row[m].tolist() for row, m in zip(batch.ids, batch.mask)] == [e.ids for e in examples]
    wanted = [(a, t - 1, e.ids[t]) for a, e in enumerate(examples) for t in range(1, len(e)) if e.counts[t]]
    assert scored(batch) == wanted
    assert batch.mask.flatten()[batch.source].all()


@given(texts(), st.integers(1, 4))
@fast
def test_packed_scores_the_same(examples, rows) -> None:
    parts = [p for p in (examples[i::rows] for i in range(rows)) if p]
    batch = collate_packed(parts, 0)
    flat = [e for p in parts for e in p]
    assert scored(batch) == scored(collate_text(flat, 0))
    assert batch.rows.tolist() == [e.row for e in flat]


@given(texts())
@fast
def test_packed_sees_its_own_past_only(examples) -> None:
    batch = collate_packed([examples], 0)
    starts, at = [], 0
    for e in examples:
        starts += [at] * len(e)
        at += len(e)
    for t in range(at):
        assert batch.sees[0, t].nonzero().flatten().tolist() == list(range(starts[t], t + 1))
        assert batch.positions[0, t] == t - starts[t]


@given(groups())
@fast
def test_tree_scores_what_rows_score(examples) -> None:
    tree, apart = (collate_groups(examples, 0, share_prompt=share) for share in (True, False))
    assert scored(tree) == scored(apart)
    assert tree.rows.tolist() == apart.rows.tolist() == [e.row for e in examples for _ in e.answers]
    assert tree.answers == sum(len(e.answers) for e in examples)
    assert tree.ids.numel() <= apart.ids.numel() or len(examples) > 1


@given(groups())
@fast
def test_tree_answers_do_not_see_each_other(examples) -> None:
    batch = collate_groups(examples, 0, share_prompt=True)
    for b, e in enumerate(examples):
        n, at = len(e.prompt), len(e.prompt)
        for answer in e.answers:
            for t in range(at, at + len(answer)):
                assert batch.sees[b, t].nonzero().flatten().tolist() == [*range(n), *range(at, t + 1)]
                assert batch.positions[b, t] == n + t - at
            at += len(answer)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 40))
@fast
def test_pack(lengths, capacity) -> None:
    bins = pack(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= capacity for b in bins)
    full = sorted((sum(lengths[i] for i in b) for b in bins), reverse=True)
    assert len(bins) < 2 or full[-1] + full[-2] > capacity, "two rows that fit into one"


def test_pack_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="row 1 has 9 tokens"):
        pack([3, 9], 8)


plans = st.builds(
    Plan, lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), step_size=st.integers(1, 9), seed=st.integers(0, 3),
    group_by_length=st.booleans(), shuffle=st.booleans(), window_steps=st.integers(1, 4), drop_last=st.booleans(),
)  # fmt: skip


@given(plans, st.integers(0, 2))
@fast
def test_an_epoch_is_every_example_once(plan, epoch) -> None:
    steps = plan.epoch(epoch)
    assert len(steps) == plan.steps_per_epoch
    seen = Counter(i for s in steps for i in s)
    assert max(seen.values()) == 1
    if not plan.drop_last:
        assert set(seen) == set(range(len(plan.lengths)))


@given(plans, st.integers(0, 20))
@fast
def test_a_step_depends_on_its_number_alone(plan, index) -> None:
    """Asked in any order, after any others: what resuming rests on."""
    from dataclasses import replace

    fresh = replace(plan, _walked=None)
    plan.step(index + plan.steps_per_epoch)
    assert plan.step(index) == fresh.step(index)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(2, 5), st.integers(1, 4), st.booleans(),
    st.integers(1, 3),
)  # fmt: skip
@fast
def test_groups_stay_together_and_a_smaller_one_is_the_last_of_its_step(lengths, group, k, by_length, window) -> None:
    """Groups are consecutive examples of the permutation, whatever the steps and however they are sorted."""
    n = len(lengths)
    plan = Plan(lengths, group * k, 3, by_length, window_steps=window, group=group)
    order = np.random.default_rng([3, 1]).permutation(n).tolist()
    wanted = sorted(order[i : i + group] for i in range(0, n, group))
    steps = plan.epoch(1)
    assert len(steps) == plan.steps_per_epoch
    found = [step[i : i + group] for step in steps for i in range(0, len(step), group)]
    assert sorted(found) == wanted
    assert sum(len(step) % group > 0 for step in steps) == (n % group > 0)
    assert all(len(step) <= group * k for step in steps)


def test_seeds_and_epochs_give_other_orders() -> None:
    lengths = list(range(1, 41))
    orders = {tuple(map(tuple, Plan(lengths, 4, seed).epoch(e))) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_positions_from_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
