"""Classes of single tokens: which token bears the class of a word or of a step, what is lost by cutting, stored names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from luthier import data
from luthier.checks.data import vocabulary
from luthier.core.batch import IGNORED
from luthier.core.method import LuthierError, RowError
from luthier.core.tags import places
from luthier.data.stepwise import Stepwise
from luthier.data.tagged import Tagged

WORDS = ["the", "Anderson", "bought", "antidisestablishmentarianism", "in", "Leeds"]
TAGS = ["O", "B-PER", "O", "B-ITEM", "O", "B-LOC"]
ROW = {"tokens": WORDS, "ner_tags": TAGS}
NAMES = ("B-ITEM", "B-LOC", "B-PER", "O")


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("layout", ["causal", "encoder"])
def test_words_bear_their_class_as_transformers_places_them(layout: str, everywhere: bool) -> None:
    """`word_ids` of a pre-split text is the oracle, for a tokenizer that splits words the same way in both forms."""
    tokenizer = vocabulary(layout)
    example = Tagged(label_names=NAMES, label_all_tokens=everywhere).encode(ROW, 0, tokenizer)
    split = tokenizer(" ".join(WORDS), return_offsets_mapping=True)
    starts = [len(" ".join(WORDS[:k])) + (k > 0) for k in range(len(WORDS))]
    wanted, before = [], None
    for first, stop in split["offset_mapping"]:
        word = None if stop <= first else max(k for k, s in enumerate(starts) if s <= stop - 1)
        bears = word is not None and (everywhere or word != before)
        wanted.append(NAMES.index(TAGS[word]) if bears else IGNORED)
        before = word
    assert example.ids == split["input_ids"]
    assert example.tags == wanted
    assert len(example.tagged) >= len(WORDS)


def test_a_token_of_a_space_or_of_two_words_bears_no_class() -> None:
    offsets, special = [(0, 0), (0, 3), (3, 4), (4, 9), (9, 15), (0, 0)], [1, 0, 0, 0, 0, 1]
    spans = [(0, 3), (4, 9), (10, 12)]  # the last token covers more than the third word
    assert places(offsets, special, spans, "begin") == [[1], [3], []]
    spaced = [(0, 3), (3, 9), (9, 12), (12, 15)]  # byte-level tokens with the space before them
    assert places(spaced, [0] * 4, [(0, 3), (4, 9), (10, 15)], "all") == [[0], [1], [2, 3]]
    assert places(spaced, [0] * 4, [(0, 3), (4, 9), (10, 15)], "end") == [[0], [1], [3]]


def test_bad_rows_say_what_is_wrong() -> None:
    method, tokenizer = Tagged(label_names=NAMES), vocabulary("encoder")
    for row, message in (
        ({"tokens": ["a"]}, "no 'ner_tags'"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "'tokens' is not a list"),
        ({"tokens": ["a"], "tags": ["B-GOD"]}, "'B-GOD' is not one of B-ITEM, B-LOC, B-PER, O"),
        ({"tokens": ["a", "b"], "tags": [None, IGNORED]}, "no token has a tag"),
        ({"tokens": "[1, ", "tags": ["O"]}, "'tokens' is not JSON"),
    ):
        with pytest.raises(RowError, match=message):
            method.encode(row, 0, tokenizer)
    for row, message in (
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True]}, "2 completions and 1 labels"),
        ({"prompt": "p", "completions": ["a"], "labels": ["yes"]}, "true or false for each step"),
        ({"prompt": ["p"], "completions": ["a"], "labels": [1]}, "'prompt' is not text"),
    ):
        with pytest.raises(RowError, match=message):
            Stepwise().encode(row, 0, tokenizer)


def test_several_columns_of_tags_are_told_apart_by_the_user(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**ROW, "pos_tags": ["DT", "NN", "VB", "NN", "IN", "NN"]}) + "\n")
    with pytest.raises(LuthierError, match="ner_tags and pos_tags both hold tags: say tag_column: ner_tags"):
        data.prepare(str(file), tokenizer=vocabulary("encoder"))
    found = data.prepare(str(file), tokenizer=vocabulary("encoder"), options={"tag_column": "pos_tags"})
    assert found.report.label_names == ["DT", "IN", "NN", "VB"]


def test_csv_cells_are_lists() -> None:
    cells = {"tokens": json.dumps(WORDS), "ner_tags": json.dumps(TAGS)}
    method, tokenizer = Tagged(label_names=NAMES), vocabulary("encoder")
    assert method.encode(cells, 0, tokenizer) == method.encode(ROW, 0, tokenizer)


def test_cutting_is_counted_and_keeps_the_rest(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps({"tokens": ["the"], "ner_tags": ["O"]}) + "\n")
    found = data.prepare(str(file), tokenizer=vocabulary("encoder"), options={"max_length": 6})
    assert (found.report.truncated, found.report.answers_cut) == (1, 1)
    assert len(found.examples[0]) == 6
    whole = data.prepare(str(file), tokenizer=vocabulary("encoder"))
    assert found.examples[0].tags[:5] == whole.examples[0].tags[:5]
    assert whole.report.label_names == list(NAMES)
    assert whole.report.label_counts == {"B-ITEM": 1, "B-LOC": 1, "B-PER": 1, "O": 4}
    shown = data.preview_text(whole, vocabulary("encoder"), n=1)
    assert "/B-PER]]" in shown


def test_names_that_a_data_set_stores_are_taken(tmp_path) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    names = ["O", "B-PER", "B-LOC", "B-ITEM"]
    rows = {"tokens": [WORDS], "ner_tags": [[names.index(t) for t in TAGS]]}
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=names))})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    found = data.prepare(str(tmp_path / "set"), tokenizer=vocabulary("encoder"))
    assert found.report.label_names == names
    example = found.examples[0]
    assert [names[example.tags[t]] for t in example.tagged] == TAGS


def test_steps_are_judged_at_their_end() -> None:
    tokenizer, steps = vocabulary("causal"), [" 3+4=7", " 7+5=3"]
    row = {"prompt": "sum10 3+4+5:", "completions": steps, "labels": [True, False]}
    example = Stepwise().encode(row, 0, tokenizer)
    assert [example.tags[t] for t in example.tagged] == [1, 0]
    for k, t in enumerate(example.tagged):
        assert tokenizer.decode(example.ids[: t + 1]).endswith(steps[k].strip() + "\n")
    last = replace(Stepwise(), last_step_only=True).encode(row, 0, tokenizer)
    assert last.ids == example.ids
    assert [last.tags[t] for t in last.tagged] == [0]


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(LuthierError, match="fast tokenizer"):
        Tagged(label_names=NAMES).encode_rows([ROW], [0], Slow())
