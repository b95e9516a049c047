"""The code study: test rows that training cannot have seen, one protocol for all, examples in front of prompts, the table."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import luthier
from luthier import sandbox
from luthier.core import config
from luthier.core.method import LuthierError
from luthier.core.quantise import quantised
from luthier.core.shots import WithExamples, by_meaning, by_words, drawn
from luthier.recipes import _code_table as table
from luthier.recipes._code_sets import read_sets, said
from luthier.recipes._code_table import DRAWN, JOINT, NEAREST, TUNED, ZERO, Line, questions
from luthier.recipes.peft_code import PeftCode, rounded_as
from luthier.report.evidence import Spread
from luthier.verbs.load import load

ROWS = "sandbox:programs?part=known&task="
SETS = {n: {"train": f"{ROWS}{n}&n=40", "test": f"{ROWS}{n}&split=test&n=3"} for n in ("write", "write_tested")}
RECIPE = {
    "name": "study",
    "model": "nano-1m",
    "procedure": {"name": "peft_code", "sets": SETS, "models": {"nano-1m": ["full", "lora"], "nano-1m:nf4": ["lora"]},
                  "joint": ["full"], "shots": [2], "shot_seeds": [1, 2], "k": [1, 3], "max_new_tokens": 10, "seeds": 1,
                  "program": "{signature}\n{output}", "fresh": False},
    "train": {"max_steps": 1, "torch_threads": 1},
    "evaluate": {"drift": False},
    "compare": {"methods": {"lora": {"tuner.r": 2}}},
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- sets


def _files(folder: Path, **parts: list[str]) -> dict[str, str]:
    """A set of intents; what they complete to is all the same."""
    for part, intents in parts.items():
        rows = [{"prompt": f"do: {i}\n", "what": i, "completion": "pass"} for i in intents]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {part: str(folder / f"{part}.jsonl") for part in parts}


def _sets(tmp_path: Path, tests: list[str]) -> list:
    sets = {}
    for name, train in (("a", [f"sum of {i}" for i in range(20)]), ("b", [f"length of {i}" for i in range(20)])):
        (tmp_path / name).mkdir()
        sets[name] = _files(tmp_path / name, train=train, test=tests)
    return read_sets(sets, config.recipe({"model": "nano-1m"}), "what")


def test_no_test_row_asks_for_what_any_set_trains_on(tmp_path: Path) -> None:
    a, b = _sets(tmp_path, ["sum of 3", " Sum  of 3", "LENGTH of 4", "sum of 30", "product of 3"])
    for one in (a, b):
        assert [r["what"] for r in one.parts["test"]] == ["sum of 30", "product of 3"]
        assert one.duplicates == 3
        train, held = ({said(r["what"]) for r in one.parts[p]} for p in ("train", "validation"))
        assert train and held and not train & held


def test_a_set_without_test_rows_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match=r"procedure\.sets\.a: every test row's intent is among"):
        _sets(tmp_path, ["sum of 3"])


# ------------------------------------------------------------------------------------------------ the protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"procedure.sets": {}}, r"procedure\.sets is missing"),
        ({"procedure.sets": {"all": {}}}, r"procedure\.sets: 'all' cannot name"),
        ({"procedure.sets": {"a": {"train": "x"}}, "procedure.joint": []}, r"procedure\.sets\.a: names train and test"),
        ({"procedure.models": {"nano-1m": ["lore"]}}, r"procedure\.methods: unknown method 'lore'.*'lora'"),
        ({"procedure.models": {"nano-1m:int8": ["full"]}}, r"full trains what is rounded in nano-1m:int8"),
        ({"procedure.sets": {"a": {}}}, r"procedure\.joint trains on all sets together, and there is one"),
        ({"compare.methods": {"lora": {"evaluate.tasks": []}}}, r"compare\.methods\.lora: evaluate\.tasks has to be the same"),
        ({"compare.methods": {"lora": {"decoding": "greedy"}}}, r"decoding has to be the same"),
        ({"compare.methods": {"lora": {"train.learning_rate": 1}}, "compare.pilot.rates": [1]}, r"chosen by a pilot"),
        ({"procedure.tasks": [{"name": "a", "scorer": "candidates", "data": "x"}]}, r"procedure\.tasks have a name and no data"),
        ({"procedure.tasks": [{"name": "a", "scorer": "candidate"}]}, r"task a: .*'candidates'"),
        ({"procedure.shots": [0]}, r"shots are numbers of examples"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_is_read(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=message) as error:
        luthier.run(RECIPE, overrides={**changes, "output_dir": str(tmp_path / "out")}, quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_names_of_rounded_models() -> None:
    assert [rounded_as(m) for m in ("a:nf4", "a/b:int8", "a", "nf4", "a:b")] == ["nf4", "int8", "", "", ""]


# ---------------------------------------------------------------------------------------------------- examples


def _subject(window: int | None = None) -> SimpleNamespace:
    """A subject that has a token a word and answers with what it was asked."""
    return SimpleNamespace(
        window=window, encode=lambda text, special=True: text.split(), generate=lambda prompts, *a: list(prompts),
        candidates=lambda prompts, k, *a: [[p] * k for p in prompts], name="echo",
    )  # fmt: skip


def test_draws_are_nested_seeded_and_without_repeats() -> None:
    examples = [f"e{i}" for i in range(9)]
    three, two, other = drawn(examples, 3, 1)("x"), drawn(examples, 2, 1)("y"), drawn(examples, 3, 2)("x")
    assert three[:2] == two != other[:2]
    assert len(set(three)) == 3
    assert set(drawn(examples, 99, 1)("x")) == set(examples)


def test_the_nearest_example_stands_next_to_the_question() -> None:
    known = ["sort the list", "sum of a list", "open a file"]
    choose = by_words(known, [k.upper() for k in known], 2, "here")
    asked = WithExamples(_subject(), choose, " | ", {"Q: sum": "the sum of a list"})
    assert asked.generate(["Q: sum"]) == ["SORT THE LIST | SUM OF A LIST | Q: sum"]
    assert asked.candidates(["Q: sum"], 2) == [["SORT THE LIST | SUM OF A LIST | Q: sum"] * 2]


def test_nearest_by_meaning_is_cosine() -> None:
    vectors = {"a": [1.0, 0.0], "b": [5.0, 5.0], "c": [0.0, -1.0], "q": [0.1, 0.01]}
    encoder = SimpleNamespace(embeddings=lambda texts: np.array([vectors[t] for t in texts]))
    assert list(by_meaning(list("abc"), list("ABC"), 2, encoder)("q")) == ["A", "B"]


def test_examples_without_room_are_left_out_whole() -> None:
    subject = WithExamples(_subject(window=12), lambda asked: ["one two", "three four", "five six"], " ")
    assert subject.generate(["q q"], 6) == ["three four one two q q"]  # 6 and 6 fit, 8 and 6 do not
    assert (subject.shown, subject.tokens) == ({"q q": 2}, {"q q": 6})
    with pytest.raises(LuthierError, match="plain prompts"):
        subject.generate([[{"role": "user", "content": "q"}]])


# ------------------------------------------------------------------------------------------------ a whole study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    return luthier.run(RECIPE, overrides={"output_dir": str(tmp_path_factory.mktemp("code") / "out")}, quiet=True)


def _line(study, **wanted) -> Line:
    (found,) = [x for x in study.lines if all(getattr(x, k) == v for k, v in wanted.items())]
    return found


def test_a_line_for_every_method_model_and_set(study) -> None:
    own = [("full", "nano-1m", TUNED), ("lora", "nano-1m", TUNED), ("lora", "nano-1m-nf4", TUNED)]
    own += [("full", "nano-1m", JOINT)]
    own += [("0 examples", "nano-1m", ZERO), ("2 drawn", "nano-1m", DRAWN), ("2 nearest", "nano-1m", NEAREST)]
    assert [(x.set, x.method, x.model, x.kind) for x in study.lines] == [(s, *rest) for s in SETS for rest in own]
    for line in study.lines:
        told = line.told()
        assert told["seeds"] == (2 if line.kind == DRAWN else 1)
        assert told["base_parameters"] == 1000576
        tuned = line.kind in (TUNED, JOINT)
        for key in ("peak_memory_bytes", "train_seconds", "validation", "rate"):
            assert (told[key] is not None) == tuned, key
        assert (told["prompt_tokens"] is not None) == (not tuned)
        assert math.isclose(told["trained_share"], told["trainable_parameters"] / 1000576)
        assert line.metrics["reference", "em@1"].mean <= line.metrics["reference", "em@3"].mean
        assert {m for _, m in line.metrics} >= {"em@1", "code_match", "ast_match", "pass@1"}
    full, lora = (_line(study, set="write", method=m, model="nano-1m", kind=TUNED) for m in ("full", "lora"))
    assert full.cost["trainable_parameters"] == 1000576
    assert lora.cost["stored_bytes"] < full.cost["stored_bytes"]
    assert (full.rate, lora.rate) == (5e-5, 3e-4)
    tokens = [_line(study, set="write", method=m).cost["prompt_tokens"] for m in ("0 examples", "2 drawn")]
    assert tokens[0] < tokens[1]


def test_no_examples_is_the_base_of_every_run(study) -> None:
    for name in SETS:
        told = json.loads((study.folder / name / "full@nano-1m-seed0" / "results.json").read_text())
        base = {(t, m): v["value"] for t, ms in told["base"].items() for m, v in ms.items()}
        assert base == {k: s.mean for k, s in _line(study, set=name, kind=ZERO).metrics.items()}


def test_one_training_on_all_sets_is_tested_on_each(study) -> None:
    told = json.loads((study.folder / "all" / "compare.json").read_text())
    cell = next(c for c in told["cells"] if c["method"] == "full@nano-1m")
    for name in SETS:
        line = _line(study, set=name, kind=JOINT, model="nano-1m")
        assert line.metrics["tests", "tests"].values == (
            cell["results"]["tuned"][f"tests of {name}"]["tests"]["value"],
        )


def test_every_run_has_the_same_rows_stop_and_measure_and_no_test_row_chooses(study) -> None:
    for name in (*SETS, "all"):
        told = [json.loads(f.read_text())["recipe"] for f in sorted((study.folder / name).glob("*/run.json"))]
        for one in told:
            for section in ("data", "decoding", "evaluate", "objective"):
                assert one[section] == told[0][section]
            assert one["train"]["load_best_model_at_end"]
            assert {Path(f).name for f in one["data"]["train"]} == {"train.jsonl"}
            assert {Path(f).name for f in one["data"]["eval"]} == {"validation.jsonl"}
            assert {Path(t["data"]).name for t in one["evaluate"]["tasks"]} == {"test.jsonl"}
        assert told[0]["decoding"]["num_beams"] == 3


def test_a_rounded_base_is_rounded_and_stays_so(study) -> None:
    there = load(str(study.folder / "rounded" / "nano-1m-nf4")).model.state_dict()
    here = sandbox.load("nano-1m")[0].state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(there[name], quantised(here[name], "nf4"))
    assert np.array_equal(there["model.embed_tokens.weight"], here["model.embed_tokens.weight"])


def test_index_table_and_report_say_the_same(study) -> None:
    told = json.loads((study.folder / "compare.json").read_text())
    assert told["status"] == "done"
    assert len(told["cells"]) == 7
    assert all((study.folder / c["run"] / "results.json").exists() for c in told["cells"])
    rows = list(csv.DictReader((study.folder / "table.csv").open()))
    assert [float(r["reference.em@1"]) for r in rows] == [x.metrics["reference", "em@1"].mean for x in study.lines]
    page = study.report.read_text()
    assert page.count("<td>no examples</td>") == len(SETS)
    assert "a quantised base" in page.lower()
    assert study.table_text().count("\n") == len(study.lines)


def test_a_study_that_breaks_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args, **given):
        raise LuthierError("the disk is full")

    only = {"output_dir": str(tmp_path / "out"), "procedure.models": {"nano-1m": []}, "procedure.joint": []}
    with monkeypatch.context() as patched:
        patched.setattr("luthier.evaluation.measure", breaks)
        with pytest.raises(LuthierError, match="the disk is full"):
            luthier.run(RECIPE, overrides=only, quiet=True)
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (told["status"], told["error"]) == ("failed", "the disk is full")
    done = luthier.run(RECIPE, overrides={**only, "procedure.shots": []}, quiet=True, resume=True)
    assert [(x.set, x.kind) for x in done.lines] == [(name, ZERO) for name in SETS]  # a model that is only prompted


def test_what_was_asked_is_not_asked_again(study, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args, **given):
        raise AssertionError("everything was done already")

    before = (study.folder / "table.csv").read_text()
    monkeypatch.setattr("luthier.evaluation.measure", never)
    monkeypatch.setattr("luthier.verbs._cell.run", never)
    with pytest.raises(LuthierError, match="a comparison is here already"):
        luthier.run(RECIPE, overrides={"output_dir": str(study.folder)}, quiet=True)
    luthier.run(RECIPE, overrides={"output_dir": str(study.folder)}, quiet=True, resume=True)
    assert (study.folder / "table.csv").read_text() == before


# ------------------------------------------------------------------------------------------------- questions

EM = ("reference", "em@1")


def _made(
    method: str, kind: str, *values: float, model: str = "large", loss: float | None = None, size: float = 9.0
) -> Line:
    cost = {"base_parameters": size, "trainable_parameters": 1.0}
    return Line("s", model, method, kind, len(values), {EM: Spread(values, 0.01)}, cost, None, loss)


def _verdicts(lines: list[Line], quantised: dict | None = None) -> list[list[tuple[str, str, str]]]:
    return [[(a["a"], a["b"], a["verdict"]) for a in q["answers"]] for q in questions(lines, EM, True, quantised or {})]


def test_each_question_compares_what_it_names() -> None:
    lines = [
        _made("full", TUNED, 0.5, 0.52, model="small", loss=1.0, size=2.0),
        _made("lora", TUNED, 0.7, 0.72, loss=0.8), _made("ia3", TUNED, 0.75, 0.77, loss=0.9),
        _made("lora", JOINT, 0.7, 0.71, loss=0.1), _made("lora", TUNED, 0.2, 0.21, model="large-nf4", loss=0.1),
        _made("0 examples", ZERO, 0.1), _made("2 drawn", DRAWN, 0.28, 0.3, 0.29), _made("2 nearest", NEAREST, 0.71),
    ]  # fmt: skip
    assert _verdicts(lines, {"large-nf4": "large"}) == [
        [("lora (large)", "full (small)", "better")],  # ia3 is better on the test rows, which have no say
        [("lora (large)", "2 drawn (large)", "better")],
        [("lora (large)", "2 nearest (large)", "not told apart")],
        [("lora on all sets (large)", "lora (large)", "not told apart")],
        [("lora (large-nf4)", "lora (large)", "worse")],
    ]


def test_a_single_seed_claims_nothing_and_a_single_model_has_no_size() -> None:
    lines = [_made("full", TUNED, 0.1, loss=1.0), _made("lora", TUNED, 0.9, loss=1.0), _made("0 examples", ZERO, 0.1)]
    assert _verdicts(lines) == [[], [("lora (large)", "0 examples (large)", "one seed: no claim")], [], [], []]
    empty = replace(lines[1], metrics={}, cost={}, why="refused: no")
    assert _verdicts([lines[0], empty]) == [[]] * 5
    assert "refused: no" in table.as_text([empty], [EM])
    assert table.as_csv([lines[0], empty]).endswith(",refused: no\n")


def test_the_usual_tasks_stop_alike() -> None:
    tasks = PeftCode(stop=("\n",), max_new_tokens=7).usual(tested=True)
    assert [t["scorer"] for t in tasks] == ["candidates", "code_similarity", "code_tests"]
    assert {(tuple(t["stop"]), t["max_new_tokens"]) for t in tasks} == {(("\n",), 7)}
    assert len(PeftCode().usual(tested=False)) == 2
