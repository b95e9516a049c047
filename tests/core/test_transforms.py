"""Transforms: what is said to be exact comes back to the letter, what is not says so, and the rest is known by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from luthier.core.method import LuthierError
from luthier.core.transforms import TRANSFORMS, Transform, transform

SIGNS = [
    *"abcxyzABC ,.-:=\n\t_0123456789",
    "é",
    "ß",
    "İ",
    "Ω",
    "中",
    "🙂",
    "e\u0301",
    "\u0660",
    " 12",
    " 0.50",
    "y: ",
    "y: 7.5",
    " ab",
    " yz",
]
EXACT = [
    {"name": "identity"},
    *({"name": "scale_labels", "factor": f} for f in (1.0, 1.5, 2.0, 3.0, 0.1, 1e-3, 250.0)),
    {"name": "scale_labels", "factor": 3.0, "before": "y:"},
    {"name": "pig_latin"},
    {"name": "alphabet_map", "pairs": {"a": "Ω", "b": "c", "c": "🙂", "1": "2"}},
    {"name": "alphabet_map", "pairs": {"ab": "yz", "yz": "abc", "a": "中"}},
]


@pytest.mark.parametrize("told", EXACT, ids=str)
def test_exact_transforms_come_back_on_any_text(told: dict) -> None:
    one, rng = transform(told), random.Random(0)
    changed = 0
    for _ in range(500):
        text = "".join(rng.choices(SIGNS, k=rng.randrange(30)))
        there = one.forward(text)
        assert one.inverse(there) == text
        changed += there != text
    assert one.is_exact
    assert (changed > 50) == (told not in ({"name": "identity"}, {"name": "scale_labels", "factor": 1.0}))


def test_pig_latin_comes_back_on_every_short_text() -> None:
    one = transform("pig_latin")
    texts = ("".join(t) for n in range(7) for t in itertools.product("aybR-?", repeat=n))
    assert all(one.returns(t) for t in texts)


def test_factor_one_changes_nothing_but_the_way_a_number_is_written() -> None:
    one = transform({"name": "scale_labels", "factor": 1})
    assert one.forward("x 1.25 y 3 z 007") == "x 1.25 y 3 z 007"


@pytest.mark.parametrize(
    ("told", "text", "there"),
    [
        ({"name": "scale_labels", "factor": 2.0}, "x -1.5 and 3", "x -3.0 and 6"),
        ({"name": "scale_labels", "factor": 2.0, "before": "y ="}, "x = 4, y = -4, z = 4", "x = 4, y = -8, z = 4"),
        ({"name": "alphabet_map", "pairs": {"cat": "dog"}}, "cat sees dog, cats do not", "dog sees cat, cats do not"),
        ("leetspeak", "What is 7 plus 12?", "Wh47 15 7 plu5 12?"),
        ("pig_latin", "String theory, apple 12", "ing-Stray eory-thay, apple-ay 12"),
        (
            {"name": "template_swap", "pairs": {"Input:": ">>", "Output:": "<<"}},
            "Input: a\nOutput: b",
            ">> a\n<< b",
        ),
        ({"name": "translate", "to": str.upper, "back": "builtins:str"}, "abc", "ABC"),
    ],
)
def test_known_by_hand(told: object, text: str, there: str) -> None:
    one = transform(told)  # type: ignore[arg-type]
    assert one.forward(text) == there


@pytest.mark.parametrize(
    ("told", "kept", "lost"),
    [
        ("leetspeak", "we count 12 of them", "the A4 page"),
        ({"name": "template_swap", "pairs": {"Input": "In"}}, "Input: a", "In: a"),
        ({"name": "translate", "to": str.upper, "back": str.lower}, "abc", "Abc"),
    ],
)
def test_the_others_tell_of_a_text_whether_it_comes_back(told: object, kept: str, lost: str) -> None:
    one = transform(told)  # type: ignore[arg-type]
    assert not one.is_exact
    assert one.returns(kept)
    assert not one.returns(lost)


def test_an_answer_is_divided_whole_and_rounded_only_where_it_must_be() -> None:
    one = transform({"name": "scale_labels", "factor": 3.0, "before": "y ="})
    assert one.inverse("2.50, or 6") == "0.833333333333, or 2"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("leetspeek", "did you mean 'leetspeak'"),
        ({}, "one of identity"),
        ({"name": "pig_latin", "pairs": {}}, "'pairs' is none of its options"),
        ({"name": "scale_labels"}, "give 'factor'"),
        ({"name": "scale_labels", "factor": -1.0}, "positive"),
        ({"name": "scale_labels", "factor": "two"}, "positive"),
        ({"name": "alphabet_map", "pairs": {"a": 4}}, "hold 4.*in quotes"),
        ({"name": "template_swap", "pairs": ["a", "b"]}, "give {text: text"),
        ({"name": "alphabet_map", "pairs": {"a": "x", "b": "x"}}, "same sign"),
        ({"name": "alphabet_map", "pairs": {"two words": "x"}}, "single characters, or words"),
        ({"name": "template_swap", "pairs": {"": "x"}}, "empty"),
        ({"name": "template_swap", "pairs": {"a": "x", "b": "x"}}, "no way back"),
        ({"name": "translate", "to": "nowhere:at_all", "back": str.lower}, "module:function"),
    ],
)
def test_mistakes_are_told_in_a_line(told: object, said: str) -> None:
    with pytest.raises(LuthierError, match=said) as caught:
        transform(told)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_every_transform_is_in_the_table() -> None:
    assert set(TRANSFORMS.values()) == set(Transform.__subclasses__())
