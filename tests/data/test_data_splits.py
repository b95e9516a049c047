"""Splits: seeded, by strata, by groups, and no row on both sides unseen."""

from __future__ import annotations

import random
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.method import LuthierError
from luthier.data import LeakWarning, RowTable, overlap, split


def table(rows) -> RowTable:
    return RowTable(list(rows), [f"f.jsonl:{i + 1}" for i in range(len(rows))], found=len(rows))


ROWS = [{"text": f"row {i}", "label": "ab"[i % 4 == 0], "who": f"w{i % 7}"} for i in range(100)]


@pytest.mark.parametrize(("size", "n"), [(0.1, 10), (0.25, 25), (1, 1), (30, 30)])
def test_sizes_seed_and_order(size: float, n: int) -> None:
    train, held = split(table(ROWS), size, seed=3)
    assert (len(train), len(held)) == (100 - n, n)
    assert sorted([*train.origins, *held.origins]) == sorted(table(ROWS).origins)
    order = [ROWS.index(r) for r in held.rows]
    assert order == sorted(order)
    assert split(table(ROWS), size, seed=3)[1].rows == held.rows
    if n > 1:
        assert split(table(ROWS), size, seed=4)[1].rows != held.rows


def test_strata_keep_their_shares() -> None:
    _, held = split(table(ROWS), 20, stratify="label")
    assert Counter(r["label"] for r in held.rows) == {"a": 15, "b": 5}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=20, max_size=80), st.integers(0, 5), st.booleans()
)
def test_no_group_is_on_both_sides(keys, seed: int, stratify: bool) -> None:
    rows = [{"text": str(i), "group": {"id": g}, "kind": k} for i, (g, k) in enumerate(keys)]
    try:
        train, held = split(
            table(rows), 0.3, seed=seed, group="group.id", stratify="kind" if stratify else None, check=False
        )
    except LuthierError:
        return  # too few groups for a part of this size
    assert not {r["group"]["id"] for r in train.rows} & {r["group"]["id"] for r in held.rows}
    assert len(train) + len(held) == len(rows)


def test_rejected_rows_stay_with_the_training_part() -> None:
    from luthier.data._reading import Rejected

    whole = table(ROWS)
    whole.rejected, whole.found = [Rejected("f.jsonl:200", "bad")], 105
    train, held = split(whole, 10)
    assert (len(train.rejected), len(held.rejected)) == (1, 0)
    assert (train.left_out, held.left_out) == (4, 0)
    assert train.found + held.found == 105


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (0, {}, "must be a share"),
        (True, {}, "must be a share"),
        (2.5, {}, "fewer rows"),
        (100, {}, "fewer rows"),
        (0.2, {"stratify": "lable"}, "did you mean 'label'"),
        (0.2, {"group": "whom"}, "did you mean 'who'"),
    ],
)
def test_mistakes(size, options, message) -> None:
    with pytest.raises(LuthierError, match=message):
        split(table(ROWS), size, **options)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(LuthierError, match="1 groups by 'who'"):
        split(table([r | {"who": "same"} for r in ROWS]), 0.2, group="who")


def test_overlap_finds_the_same_rows() -> None:
    train = table(
        [
            {"prompt": "What is 2+2?", "completion": "4", "id": 1},
            {"prompt": "What is 2-2?", "completion": "0", "id": 2},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            {"text": "..."},
        ]
    )
    held = table(
        [
            {"prompt": "What is 2+2?", "completion": "4", "id": 9},
            {"prompt": "what  is 2-2 ?", "completion": "0"},
            {"prompt": "What is 2*2?", "completion": "4"},
            {"messages": [{"role": "user", "content": "hi!"}, {"role": "assistant", "content": "Hello"}]},
            {"text": "!!!"},
        ]
    )
    with pytest.warns(LeakWarning, match="LEAK: 3 of 5 evaluation rows"):
        found = overlap(train, held)
    assert [(f.kind, f.train[-1], f.evaluation[-1]) for f in found] == [
        ("exact", "1", "1"),
        ("normalised", "2", "2"),
        ("prompt", "3", "4"),
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=30, max_size=60), st.integers(0, 5))
def test_rows_that_say_or_ask_the_same_stay_together(times: list[int], seed: int) -> None:
    """Prompts in two spellings, each up to three times, with the same and with other answers."""
    texts = [t for t, n in enumerate(times) for _ in range(n)]
    random.Random(seed).shuffle(texts)
    rows = [{"prompt": ["Say {}.", "say  {}"][i % 2].format(t), "completion": f"{i % 5}"} for i, t in enumerate(texts)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, held = split(table(rows), 0.3, seed=seed)
    assert len(train) + len(held) == len(rows)
    assert len(held) == pytest.approx(0.3 * len(rows), abs=2)


def test_a_prompt_that_all_rows_share_does_not_bind_them() -> None:
    rows = [{"prompt": "Tell a story.", "completion": f"story {i}"} for i in range(40)]
    with pytest.warns(LeakWarning, match="10 prompt"):
        train, held = split(table([*rows, rows[0]]), 10)
    assert len(held) == 10
    assert not {r["completion"] for r in train.rows} & {r["completion"] for r in held.rows}


def test_split_warns_of_repeated_rows() -> None:
    with pytest.warns(LeakWarning):
        split(table([{"text": "same"}] * 10), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(table(ROWS), 0.5)
