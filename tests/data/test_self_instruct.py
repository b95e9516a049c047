"""Self-instruct: what the filter lets through, which translations are dropped, and rankings as pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.method import LuthierError
from luthier.data._self_instruct import (
    Filter,
    Task,
    _rouge,
    asked,
    common,
    leaked,
    mistranslated,
    pairs,
    ranked_row,
    rouge_l,
    self_instruct,
    translated,
)

WORDS = st.lists(st.sampled_from("abcde"), max_size=7)


def task(instruction: str, given_: str = "", output: str = "done") -> Task:
    return {"instruction": instruction, "input": given_, "output": output}


# ------------------------------------------------------------------------------------------------- ROUGE-L


def test_rouge_of_the_same_text_is_one_and_of_other_words_zero() -> None:
    assert rouge_l("Name three birds.", "name three BIRDS") == 1
    assert rouge_l("name three birds", "sum two numbers") == 0
    assert rouge_l("", "") == 0
    assert rouge_l("a b c d", "d a b") == pytest.approx(2 * 2 / 7)


def _by_definition(a: Sequence[str], b: Sequence[str]) -> int:
    """Every subsequence of `a`, the longest that is one of `b`."""
    found = {()}
    for x in a:
        found |= {(*s, x) for s in found}

    def inside(s: Sequence[str]) -> bool:
        rest = iter(b)
        return all(x in rest for x in s)

    return max(len(s) for s in found if inside(s))


@given(WORDS, WORDS)
def test_longest_common_subsequence_is_that_of_the_definition(a: list[str], b: list[str]) -> None:
    assert common(a, b) == _by_definition(a, b)


@given(WORDS, WORDS, st.floats(0, 1))
def test_the_bound_never_lets_a_similar_text_pass(a: list[str], b: list[str], least: float) -> None:
    exact = _rouge(a, b, 0.0)
    assert (_rouge(a, b, least) >= least) == (exact >= least)


# --------------------------------------------------------------------------------------------------- filter


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (task("name three birds of the south"), ""),
        (task("sort the words", "c b a"), "duplicate"),
        (task("sort the long words", "c b a"), "similar"),  # a paraphrase by copying
        (task("sum"), "length"),
        (task("describe what the image shows"), "banned"),
        (task("name three rivers", output=" "), "empty"),
    ],
)
def test_what_may_join(candidate: Task, why: str) -> None:
    pool = [asked(task("sort the words", "c b a"))]
    assert Filter(fewest=2).refuses(candidate, pool, {tuple(t) for t in pool}) == why


def _numbers(shown: Sequence[Task], seed: int) -> list[Task]:
    """One new task and one copy."""
    return [task(f"say {seed} times {seed % 97} more"), dict(shown[0])]


def test_tasks_are_new_to_the_pool_and_the_same_for_a_seed() -> None:
    seeds = [task("reverse the list"), task("name a colour")]
    found, counts = self_instruct(seeds, _numbers, 12, seed=3)
    assert len(found) == 12
    assert counts["kept"] >= 12
    assert counts["duplicate"]
    texts = [" ".join(asked(t)) for t in (*seeds, *found)]
    assert all(rouge_l(a, b) < 0.7 for i, a in enumerate(texts) for b in texts[:i])
    assert self_instruct(seeds, _numbers, 12, seed=3)[0] == found
    assert self_instruct(seeds, _numbers, 12, seed=4)[0] != found


def test_the_generator_is_shown_seeds_and_its_own() -> None:
    seen: list[list[Task]] = []

    def generator(shown: Sequence[Task], seed: int) -> list[Task]:
        seen.append(list(shown))
        return _numbers(shown, seed)

    seeds = [task(f"seed number {i} of many words {i}") for i in range(9)]
    self_instruct(seeds, generator, 6, shown=5, own=2)
    assert seen[0] == [t for t in seen[0] if t in seeds]
    assert [len(s) for s in seen] == [5] * len(seen)
    assert sum(t not in seeds for t in seen[-1]) == 2


def test_a_generator_that_repeats_itself_is_told() -> None:
    with pytest.raises(LuthierError, match=r"5 rounds brought nothing new after 0 of 3 tasks \(5 duplicate\)"):
        self_instruct([task("reverse the list")], lambda shown, seed: [dict(shown[0])], 3, patience=5)


def test_held_out_texts_are_found_by_words_in_a_row() -> None:
    train = ["one two three four five six"]
    assert leaked(train, ["zero two three four", "four five seven", "one, Two"], n=3) == [0]
    assert leaked(train, ["One two three four: five six!"], n=13) == [0]


# ---------------------------------------------------------------------------------------------- translation


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("keep the first 3", "behalte die ersten 3", ""),
        ("keep the first 3", "behalte die ersten drei", "numbers"),
        ("fill {name} in", "setze name ein", "brackets"),
        ("one two three four five", "eins zwei", "length"),
        ("one two", "", "empty"),
        ("one two", "one two", "untranslated"),
        ("2 + 2", "2 + 2", ""),
        ("", "", ""),
    ],
)
def test_pairs_that_lost_something_are_dropped(source: str, target: str, why: str) -> None:
    assert mistranslated(source, target) == why


def test_a_task_is_dropped_with_any_of_its_parts() -> None:
    good, counts = translated(
        [task("keep 3 words", "a b"), task("keep 4 words", "4")], lambda t: t.upper().replace("4", "IV")
    )
    assert good == [task("KEEP 3 WORDS", "A B", "DONE")]
    assert counts == Counter(kept=1, numbers=1)


# -------------------------------------------------------------------------------------------------- ranking


@given(st.permutations(range(5)))
def test_a_list_of_k_has_all_its_pairs(ranks: list[int]) -> None:
    found = pairs(ranks)
    assert len(found) == 10
    assert len({frozenset(p) for p in found}) == 10
    assert all(ranks[i] < ranks[j] for i, j in found)


def test_ties_are_no_pair() -> None:
    assert pairs([1, 1, 1]) == []
    assert pairs([2, 1, 2]) == [(1, 0), (1, 2)]
    assert ranked_row("p", ["a", "b"], [1, 1]) is None
    assert ranked_row("p", ["a", "b", "a"], [2, 1, 2]) == {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}
