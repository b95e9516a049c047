"""Which type columns have, and what each type makes of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.batch import collate_groups, collate_labelled, collate_source_target, collate_text
from luthier.core.method import LuthierError, RowError
from luthier.data import detect, prepare, row_types
from luthier.data.labelled import Labelled
from luthier.data.parallel import Parallel
from luthier.data.tokenised import Tokenised
from luthier.data.unpaired import Unpaired


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("messages", "chat"),
        ("messages tools id", "chat"),
        ("question answers correct_answer comment test_id", "exam"),
        ("prompt completion", "chat"),
        ("prompt completion answer", "chat"),
        ("text", "text"),
        ("text source_file", "text"),
        ("prompt chosen rejected", "preference"),
        ("chosen rejected score_chosen", "preference"),
        ("prompt", "prompts"),
        ("prompt id", "prompts"),
        ("prompt completion label", "unpaired"),
        ("prompt completions scores", "ranked"),
        ("prompt completions ranks id", "ranked"),
        ("id tokens pos_tags ner_tags", "tagged"),
        ("prompt completions labels", "stepwise"),
        ("text label", "labelled"),
        ("text labels", "labelled"),
        ("sentence1 sentence2 label idx", "labelled"),
        ("text text_pair label", "labelled"),
        ("source target", "parallel"),
        ("translation", "parallel"),
        ("segments", "segments"),
        ("input_ids labels attention_mask", "tokenised"),
        ("input_ids", "tokenised"),
    ],
)
def test_types_by_columns(columns: str, kind: str) -> None:
    found, why = detect(columns.split())
    assert found == kind
    assert any(c in why for c in columns.split())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("messages text", "fit more than one row type"),
        ("prompt chosen rejected messages", "fit more than one row type"),
        ("text label labels", "fit more than one row type"),
        ("source target text", "fit more than one row type"),
        ("messages images", "fit more than one row type"),
        ("question answer", "no row type has the columns question, answer"),
        ("", r"columns \(none\)"),
        ("image", "image, audio or video rows: no method"),
    ],
)
def test_nothing_is_guessed(columns: str, message: str) -> None:
    with pytest.raises(LuthierError, match=message) as error:
        detect(columns.split())
    assert "\n" not in str(error.value)
    if message.startswith(("fit", "no row")):
        assert "type: ..." in str(error.value)
        assert "columns: {" in str(error.value)


def test_unknown_columns_name_every_type() -> None:
    with pytest.raises(LuthierError) as error:
        detect(["question"])
    assert all(f"{name} needs" in str(error.value) for name in row_types())


def test_every_type_has_a_file_a_paper_field_and_a_config() -> None:
    folder = Path(__file__).parents[2] / "configs" / "data"
    for name, cls in row_types().items():
        assert cls.example().name == name
        assert (folder / f"{name}.yaml").exists()
        with pytest.raises(Exception, match=r"frozen|cannot assign"):
            cls.example().max_length = 3  # type: ignore[attr-defined]


def labelled(rows, names=None, **options):
    method, notes = Labelled(**options).settle(rows, names or {})
    return method, notes


@pytest.mark.parametrize(
    ("labels", "names", "problem"),
    [
        (["pos", "neg", "pos"], ("neg", "pos"), "single_label_classification"),
        ([0, 2, 1], ("0", "1", "2"), "single_label_classification"),
        ([5, 1, 3], ("1", "3", "5"), "single_label_classification"),
        ([-1, 1], ("-1", "1"), "single_label_classification"),
        (["10", "9", "2"], ("2", "9", "10"), "single_label_classification"),
        ([True, False], ("false", "true"), "single_label_classification"),
        ([0.5, 1, 2.0], None, "regression"),
        (["0.5", "1"], None, "regression"),
        ([["a", "b"], ["c"], []], ("a", "b", "c"), "multi_label_classification"),
        ([[1, 0, 1], [0, 0, 0]], ("label_0", "label_1", "label_2"), "multi_label_classification"),
        ([[3, 7], [9]], ("3", "7", "9"), "multi_label_classification"),
    ],
)
def test_labels_are_settled_the_same_way_in_any_order(labels, names, problem) -> None:
    for values in (labels, labels[::-1]):
        method, _ = labelled([{"text": "a", "label": v} for v in values])
        assert method.label_names == names
        assert method.problem_type == problem


def test_labels_become_indices_numbers_and_vectors(encoder) -> None:
    def made(values, **options):
        rows = [{"text": "good film", "label": v} for v in values]
        method, _ = labelled(rows, **options)
        return [
            r.example.label if not isinstance(r, RowError) else str(r)
            for r in method.encode_rows(rows, range(9), encoder)
        ]

    assert made(["pos", "neg"]) == [1, 0]
    assert made([5, 1, 3]) == [2, 0, 1]
    assert made(["pos", "neg"], label_names=("pos", "neg")) == [0, 1]
    assert made([1, 0], label_names=("neg", "pos")) == [1, 0]
    assert made(["pos", "bad"], label_names=("pos", "neg"))[1] == "label 'bad' is not one of pos, neg"
    assert made(["0.5", "1"]) == [0.5, 1.0]
    assert made([1, 2], problem_type="regression") == [1.0, 2.0]
    assert made([["a", "c"], ["b"], []]) == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert made([[1, 0, 1], [0, 0, 0]]) == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert made(["pos", "", None])[1:] == ["no label", "no label"]
    with pytest.raises(LuthierError, match="give label_names"):
        made([[0, 1], [1, 0]])
    with pytest.raises(LuthierError, match="several kinds"):
        made(["a", 1])


def test_stored_class_names_are_used() -> None:
    method, _ = labelled([{"text": "a", "label": 1}], {"label": ["neg", "pos"]})
    assert method.label_names == ("neg", "pos")
    assert method._index(1) == 1


def test_sentence_pairs_and_cutting_keep_special_tokens(encoder, make) -> None:
    rows = [{"sentence1": "a b c", "sentence2": "d e", "label": 0}, {"sentence1": "a", "label": 1}]
    rows += [{"text": "a", "text_pair": "b", "label": 1}]
    pair, single, named = [r.example for r in Labelled().encode_rows(rows, range(3), encoder)]
    assert encoder.decode(pair.ids) == "[CLS] a b c [SEP] d e [SEP]"
    assert pair.type_ids == [0, 0, 0, 0, 0, 1, 1, 1]
    assert encoder.decode(single.ids) == "[CLS] a [SEP]"
    assert encoder.decode(named.ids) == "[CLS] a [SEP] b [SEP]"
    plain = make().decode(Labelled().encode(rows[2], 0, make()).ids)
    assert plain == "a\nb"
    start = Labelled(max_length=4).encode_rows([{"text": "a b c d", "label": 0}], [0], encoder)[0]
    assert encoder.decode(start.example.ids) == "[CLS] a b [SEP]"
    assert start.marks == {"cut"}
    end = Labelled(max_length=4, truncation_mode="keep_end").encode_rows(
        [{"text": "a b c d", "label": 0}], [0], encoder
    )[0]
    assert encoder.decode(end.example.ids) == "[CLS] c d [SEP]"
    with pytest.raises(RowError, match="6 tokens, more than max_length 4"):
        Labelled(max_length=4, overlong="reject").encode({"text": "a b c d", "label": 0}, 0, encoder)
    batch = collate_labelled([pair, single], pad=0)
    assert batch.type_ids.shape == batch.ids.shape


def test_parallel_rows(make) -> None:
    tokenizer = make()
    plain = Parallel(source_prefix="en: ").encode({"source": "hello", "target": "salut"}, 0, tokenizer)
    assert tokenizer.decode(plain.ids) == "en: hello"
    assert tokenizer.decode(plain.target) == "salut</s>"
    rows = [{"translation": {"en": "hello", "fr": "salut", "de": None}}]
    with pytest.raises(LuthierError, match="languages en, fr; say the direction"):
        Parallel().settle(rows, {})
    with pytest.raises(LuthierError, match="did you mean 'fr'"):
        Parallel(source_lang="fra").settle(rows, {})
    method, notes = Parallel(source_lang="fr").settle(rows, {})
    assert notes == ["from fr to en"]
    assert tokenizer.decode(method.encode(rows[0], 0, tokenizer).ids) == "salut"
    with pytest.raises(RowError, match="no 'en'"):
        method.encode({"translation": {"fr": "x"}}, 0, tokenizer)
    long = {"source": "one two three four", "target": "one two three four"}
    cut = Parallel(max_length=3, max_target_length=2).encode_rows([long], [0], tokenizer)[0]
    assert (len(cut.example.ids), len(cut.example.target)) == (3, 2)
    assert cut.marks == {"cut", "answer cut"}
    with pytest.raises(RowError, match="more than"):
        Parallel(max_target_length=2, overlong="reject").encode(long, 0, tokenizer)
    assert collate_source_target([plain], pad=2, start=0).target.tolist() == plain.target


def test_tokenised_rows(make) -> None:
    tokenizer = make()
    row = {
        "input_ids": [2, 2, 0, 50, 51, 52],
        "labels": [-100, -100, -100, 50, -100, 52],
        "attention_mask": [0, 0, 1, 1, 1, 1],
    }
    example = Tokenised().encode(row, 4, tokenizer)
    assert example.ids == [0, 50, 51, 52]
    assert example.counts == [False, True, False, True]
    assert Tokenised().encode({"input_ids": [0, 50, 51]}, 0, tokenizer).counts == [False, True, True]
    assert Tokenised().encode({"input_ids": [50, 51]}, 0, tokenizer).counts == [True, True]
    for bad, reason in [
        ({"input_ids": [50], "labels": [50, 51]}, "different lengths"),
        ({"input_ids": [50, 51], "labels": [51, -100]}, r"labels\[0\] is not input_ids\[0\]"),
        ({"input_ids": [10**6]}, "not in a vocabulary"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": "x"}, "whole numbers"),
        ({"input_ids": [50, 51], "labels": [-100, -100]}, "no token to train on"),
    ]:
        with pytest.raises(RowError, match=reason):
            Tokenised().encode(bad, 0, tokenizer)


def test_judged_answers(make) -> None:
    tokenizer = make()
    for label, score in [(True, 1.0), (False, 0.0), ("true", 1.0), ("0", 0.0), (1, 1.0)]:
        row = {"prompt": "q", "completion": "a", "label": label}
        assert Unpaired().encode(row, 0, tokenizer).scores == [score]
    with pytest.raises(RowError, match="true or false, not 'good'"):
        Unpaired().encode({"prompt": "q", "completion": "a", "label": "good"}, 0, tokenizer)
    with pytest.raises(RowError, match="prompt is empty"):
        Unpaired().encode({"prompt": "", "completion": "a", "label": 1}, 0, tokenizer)
    assert Unpaired().encode({"prompt": "", "completion": "a", "label": 1}, 0, make(bos=True)).prompt == [0]


PAIR = [
    {"prompt": "Is it?", "chosen": " yes it is", "rejected": " no it is not", "score_chosen": 4, "score_rejected": 2.5},
    {"chosen": "Is it? yes it is", "rejected": "Is it? no it is not"},
]


def test_pairs_with_and_without_a_prompt(make, chatml) -> None:
    tokenizer = make(bos=True)
    method = row_types()["preference"]()
    explicit, implicit = (method.encode(r, 0, tokenizer) for r in PAIR)
    assert (explicit.prompt, explicit.answers) == (implicit.prompt, implicit.answers)
    assert explicit.scores == [4.0, 2.5]
    assert implicit.scores == [1.0, 0.0]
    batch = collate_groups([explicit], pad=2)
    assert batch.answers == 2
    talk = [{"role": "user", "content": "Is it?"}]
    good, bad = ({"role": "assistant", "content": t} for t in ("yes", "no"))
    forms = [
        {"prompt": talk, "chosen": [good], "rejected": [bad]},
        {"prompt": talk, "chosen": "yes", "rejected": "no"},
        {"chosen": [*talk, good], "rejected": [*talk, bad]},
        {"prompt": "Is it?", "chosen": [*talk, good], "rejected": [*talk, bad]},
        {"prompt": talk, "chosen": [*talk, good], "rejected": [*talk, bad]},
    ]
    made = [method.encode(f, 0, chatml) for f in forms]
    assert all(m == made[0] for m in made)
    assert [chatml.decode(a) for a in made[0].answers] == ["yes<|im_end|>", "no<|im_end|>"]
    with pytest.raises(RowError, match="are the same"):
        method.encode({"prompt": "a", "chosen": "b", "rejected": "b"}, 0, tokenizer)
    with pytest.raises(RowError, match="one assistant message"):
        method.encode({"prompt": talk, "chosen": [good, *talk, good], "rejected": [bad]}, 0, chatml)
    with pytest.raises(RowError, match="no 'rejected'"):
        method.encode({"prompt": "a", "chosen": "b", "rejected": None}, 0, tokenizer)


def test_examples_collate_and_rows_are_kept(write, chatml) -> None:
    rows = [{"text": "one"}, {"text": ""}, {"text": "three"}]
    prepared = prepare(write("t.jsonl", rows), tokenizer=chatml)
    assert [e.row for e in prepared.examples] == [0, 2]
    assert collate_text(prepared.examples, pad=2).rows.tolist() == [0, 2]
    assert [o.rsplit(":", 1)[1] for o in prepared.origins] == ["1", "3"]


def test_configs_prepare_with_the_nano_tokenizer() -> None:
    import yaml

    from luthier import sandbox

    root = Path(__file__).parents[2]
    tokenizer = sandbox.tokenizer()
    for path in sorted((root / "configs" / "data").glob("*.yaml")):
        data = yaml.safe_load(path.read_text())["data"]
        source = data["train"] if data["train"].startswith("sandbox:") else str(root / data["train"])
        assert data["type"] == path.stem
        prepared = prepare(source, tokenizer=tokenizer, columns=data.get("columns"))
        assert prepared.report.type == path.stem
        assert not prepared.report.rejected
