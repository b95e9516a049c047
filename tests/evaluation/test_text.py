"""Graders of generated text: tables of what is right and what is not."""

from __future__ import annotations

import pytest

from luthier.evaluation._family import contains, items_of, same, short_answer, words_of
from luthier.evaluation.answer import Answer, boxed, equal, extract, number
from luthier.evaluation.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("Paris", "paris."), ("the Eiffel Tower", " Eiffel tower!"), ("21", "twenty-one"), ("21", "Twenty one."),
        ("1234", "1,234"), ("105", "one hundred and five"), ("2500", "two thousand five hundred"),
        ("126", "126 pounds"), ("126 lbs", "126"), ("3.5", "3.5"), ("-4", "−4"), ("A, B and C", "a b and c"),
        ("$5", "5"), ("5 years old", "5"), ("3/4/2020", "3/4/2020."), ("“yes”", "Yes"), ("it's", "its"),
    ],
)  # fmt: skip
def test_same(gold: str, said: str) -> None:
    assert same(gold, said)
    assert same(said, gold)


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("126", "1260"), ("126 kg", "126 pounds"), ("3.5", "35"), ("-4", "4"), ("Paris", "Paris France"), ("", "x"),
        ("twenty", "twenty one"), ("one two", "3"), ("1,23", "123"), ("yes", "no"),
    ],
)  # fmt: skip
def test_not_same(gold: str, said: str) -> None:
    assert not same(gold, said)


@pytest.mark.parametrize(
    ("gold", "said", "expected"),
    [
        ("126", "1260", False), ("126", "It weighs 126 pounds.", True), ("126", "about 1,126", False),
        ("new york", "I live in New York, USA", True), ("york new", "new york", False), ("", "anything", False),
        ("the cat", "a cat", True), ("no", "I know", False), ("six", "6 of them", True),
    ],
)  # fmt: skip
def test_contains(gold: str, said: str, expected: bool) -> None:
    assert contains(gold, said) is expected


def test_words() -> None:
    assert words_of("The  Quick, brown-ish fox's 1,000.50 £!") == ["quick", "brown", "ish", "foxs", "1000.50"]
    assert words_of("one hundred twenty three thousand") == ["123000"]
    assert words_of("one two") == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.\nIt is big.", "Paris"), ("Well, the answer is Paris.", "Paris"), ("So.\nAnswer: 12", "12"), ("", ""),
    ],
)  # fmt: skip
def test_short_answer(text: str, expected: str) -> None:
    assert short_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6*7=42\n#### 42", "42"), ("#### 1,234\nmore 5", "1,234"), (r"so \boxed{\frac{1}{2}} done 7", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"), ("The answer is 12 apples.", "12"), ("Answer: Paris.", "Paris"),
        ("first 3, then 4, so 7", "7"), ("It costs $1,200.50.", "$1,200.50"), ("half: 1/2", "1/2"),
        ("-3 degrees", "-3"), ("no number here", None), ("", None), (r"\boxed{unclosed", None), ("#### ", None),
        ("v2x", None),         ("1e3", "1e3"),
    ],
)  # fmt: skip
def test_extract(text: str, expected: str | None) -> None:
    assert extract(text) == expected


def test_extract_by_pattern() -> None:
    assert extract("x=3; x=4", r"x=(\d)") == "4"
    assert extract("(A) or (B)", r"\(([A-D])\)") == "B"
    assert extract("none", r"x=(\d)") is None
    assert extract("b", r"(a)|(b)") == "b"


@pytest.mark.parametrize(
    ("text", "value"), [("1,234", 1234), ("$5", 5), ("3/4", 0.75), ("1e3", 1000), ("-.5", -0.5), ("50%", 50)]
)
def test_number(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


def test_not_a_number() -> None:
    assert [number(t) for t in ("", "x", "1/0", "3 apples", "1 2")] == [None] * 5
    assert boxed("x") is None


def test_equal() -> None:
    assert equal("42", "42.0")
    assert equal("0.5", "1/2")
    assert equal("Paris", " paris.")
    assert not equal("42", "420")


def test_items_of_the_usual_columns() -> None:
    rows = [
        {"prompt": "p", "completion": " c"},
        {"question": "q", "answer": ["a", "b"], "id": "x"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "do", "input": "this", "output": "done"},
        {"text": "t", "text_pair": "s", "label": 1},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    ]
    items = items_of(rows)
    assert [i.id for i in items] == ["0", "x", "2", "3", "4", "5"]
    assert (items[0].prompt, items[0].reference) == ("p", " c")
    assert items[1].accepted == ("a", "b")
    assert items[2].prompt == [{"role": "user", "content": "u"}]
    assert items[2].reference == "a"
    assert items[3].prompt == "do\nthis"
    assert items[4].text == ("t", "s")
    assert items[5].choices == ("a", "b")
    made = items_of([{"a": "1", "b": "2"}], template="Q: {a}\nA:", columns={"answer": "b"})
    assert (made[0].prompt, made[0].reference) == ("Q: 1\nA:", "2")
    assert len({i.id for i in items_of([{"id": "same", "prompt": "x"}] * 3)}) == 3


def test_graders_side_by_side() -> None:
    item = items_of([{"prompt": "weight?", "answer": "126"}])[0]
    scorer = ExactMatch()
    assert scorer.judge("126 pounds", item) == {"exact_match": 1, "contains": 1, "extracted": 1}
    assert scorer.judge("The answer is 126.\nAnd more", item) == {"exact_match": 0, "contains": 1, "extracted": 1}
    assert scorer.judge("1260", item) == {"exact_match": 0, "contains": 0, "extracted": 0}
    worked = items_of([{"prompt": "6*7?", "answer": "6*7=42\n#### 42"}])[0]
    assert Answer().judge("it is 42.0", worked) == {"accuracy": 1, "answered": 1}
    assert Answer().judge("no idea", worked) == {"accuracy": 0, "answered": 0}
