"""Every world, task and part keeps the contract: determinism, disjoint splits, exact checker, no leak into corpus."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import sandbox
from luthier.sandbox.interpreter import Program, ProgramError
from luthier.sandbox.lexicon import OBJECTS
from luthier.sandbox.tint import Recorder, TInt
from luthier.sandbox.world import Row, World, gold, is_test
from luthier.sandbox.worlds import (
    instructions,
    labels,
    languages,
    programs,
    projects,
    safety,
    sequence,
    styles,
    tools,
)
from luthier.sandbox.worlds.arithmetic import render, solve
from luthier.sandbox.worlds.facts import PEOPLE

WORLDS = sandbox.worlds()
CASES = [(n, t, p) for n, w in WORLDS.items() for t, task in w.catalogue.items() for p in task.parts]
IDS = ["/".join(c) for c in CASES]
DOCUMENTS = list(sandbox.corpus(4000, seed=0))
FIELDS = {
    "prompt": {"prompt", "completion", "answer"},
    "label": {"text", "label"},
    "pair": {"prompt", "chosen", "rejected"},
    "text": {"text"},
    "messages": {"messages"},
    "search": {"query", "positive", "relevant"},
    "tags": {"tokens", "ner_tags"},
    "steps": {"prompt", "completions", "labels"},
    "exam": {"question", "answers", "correct_answer", "comment"},
}


def some_rows(world: World, task: str, part: str, split: str, n: int = 8) -> list[Row]:
    """Up to `n` rows."""
    try:
        return world.rows(task, part, split, n)
    except ValueError as error:
        return world.rows(task, part, split, int(re.search(r"has (\d+) rows", str(error))[1]))


def texts_of(name: str) -> str:
    """All corpus documents of a world."""
    return "\n".join(text for world, text in DOCUMENTS if world == name)


def test_shares_sum_to_one_and_are_met() -> None:
    assert sum(w.share for w in WORLDS.values()) == pytest.approx(1.0)
    for name, world in WORLDS.items():
        count = sum(n == name for n, _ in DOCUMENTS)
        assert count / len(DOCUMENTS) == pytest.approx(world.share, abs=0.025)


def test_worlds_are_found_by_file_name_and_unknown_names_are_one_line() -> None:
    assert len(WORLDS) == 15
    assert set(WORLDS) - set(sandbox.mixture()) == {"errands", "exam", "projects"}
    with pytest.raises(ValueError, match=r"nearest: 'sequence'"):
        sandbox.world("sequense")
    with pytest.raises(ValueError, match=r"nearest: 'reverse'"):
        sandbox.rows("sequence", task="revers")
    with pytest.raises(ValueError, match=r"nearest: 'known'"):
        sandbox.rows("facts", part="knwn")
    with pytest.raises(ValueError, match="split"):
        sandbox.rows("facts", split="dev")


def test_documents_depend_on_seed_and_number_alone() -> None:
    assert list(sandbox.corpus(5, seed=0, start=20)) == DOCUMENTS[20:25]
    assert list(sandbox.corpus(20, seed=1)) != DOCUMENTS[:20]


def test_too_many_rows_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"has \d+ rows; 100000 were asked for"):
        sandbox.rows("facts", n=100_000)
    with pytest.raises(ValueError, match=r"has \d+ rows; 5000 were asked for"):
        sandbox.rows("arithmetic", task="sum7", n=5000)


@pytest.mark.parametrize(("name", "task", "part"), CASES, ids=IDS)
def test_contract_of_a_task(name: str, task: str, part: str) -> None:
    world = WORLDS[name]
    train, test = some_rows(world, task, part, "train"), some_rows(world, task, part, "test", 4)
    assert train
    assert test
    assert train == some_rows(world, task, part, "train")
    assert [r["id"] for r in world.rows(task, part, "train", 3)] == [r["id"] for r in train[:3]]
    assert not {r["id"] for r in train} & {r["id"] for r in test}
    for row in train + test:
        assert FIELDS[world.catalogue[task].kind] | {"id", "world", "task", "part", "split"} <= set(row)
        assert json.loads(json.dumps(row))
        right = gold(row)
        assert world.score(row, right) == 1.0
        assert world.score(row, right + "<|end|>") == 1.0
        assert world.score(row, right + world.stop + "more") == 1.0 or row["task"] == "delimited"
        assert world.score(row, "") == 0.0
        for wrong in corrupted(right)[name == "programs" :]:  # a changed program may still be right
            assert world.score(row, wrong) == 0.0, wrong


def corrupted(right: str) -> list[str]:
    """Wrong completions made from a right one: its last letter or digit changed, and something else altogether."""
    place = max(i for i, c in enumerate(right) if c.isalnum())
    other = str((int(right[place]) + 1) % 10) if right[place].isdigit() else "q" if right[place] != "q" else "z"
    return [right[:place] + other + right[place + 1 :], "something else"]


@pytest.mark.parametrize("name", list(WORLDS))
def test_train_and_test_share_no_split_key(name: str) -> None:
    world = WORLDS[name]
    for task, declared in world.catalogue.items():
        for part in declared.parts:
            items = world.items(task, part) or [world.draw(task, part, random.Random(i)) for i in range(40)]
            keys = {
                split: {repr(world.split_key(task, i)) for i in items if _in_test(world, task, i) == split}
                for split in (0, 1)
            }
            assert not keys[0] & keys[1]


def _in_test(world: World, task: str, item: object) -> int:
    return int(is_test(world.split_key(task, item)))


def test_new_people_and_held_out_tasks_are_not_in_the_corpus() -> None:
    everything = "\n".join(text for _, text in DOCUMENTS)
    assert not [p.name for p in PEOPLE["new"] if p.name in everything]
    assert all(p.name in everything for p in PEOPLE["known"])
    mentions = {part: sum(everything.count(p.name) for p in PEOPLE[part]) for part in ("known", "rare")}
    assert mentions["rare"] / mentions["known"] == pytest.approx(1 / 3, rel=0.25)
    for word in [*sequence.HELD_OUT, "member"]:
        assert f"{word}:" not in everything
    called = set(re.findall(r"Call: {\"(\w+)\"", texts_of("tools")))
    assert called == set(tools.KNOWN)
    assert not [t for t in tools.NEW if f"{t}(" in everything]
    chats = texts_of("safety")
    assert not [m for m in safety.HELD if re.search(rf"<\|user\|>[^<]*{m}", chats)]
    told = texts_of("instructions")
    for wordings in instructions.WORDINGS.values():
        assert not [w for w in wordings[instructions.SEEN_WORDINGS :] if f"Please {w}:" in told]
    held = " ".join(instructions.HELD_MARKS)
    assert not re.search(rf"^{re.escape(held[0])} .*{re.escape(held[-1])}", told, re.M)
    allowed = languages.PIVOT.name
    routes = set(re.findall(r"^(\w+) to (\w+):", texts_of("languages"), re.M))
    assert len(routes) == 14
    assert all(allowed in route for route in routes)


def test_procedural_documents_hold_no_test_input() -> None:
    world = WORLDS["sequence"]
    for line in texts_of("sequence").split("\n"):
        found = re.fullmatch(r"(\w+): ([a-l ]+) -> [a-l ]+", line)
        if found:
            assert not is_test(tuple(found[2].split()))
    operands = re.findall(r"^(?:sum10|sum7|add) ([\d+]+):", texts_of("arithmetic"), re.M)
    assert len(operands) > 500
    assert not [o for o in operands if is_test(tuple(map(int, o.split("+"))))]
    heads = re.findall(r"^# (.+)$", texts_of("programs"), re.M)
    test_heads = {
        programs.describe(programs_item(r), 0) for r in WORLDS["programs"].rows("write", "known", "test", 100)
    }
    assert not test_heads & set(heads)
    assert world.rows("copy", "fewshot", "test", 3)


def programs_item(row: Row) -> tuple[tuple[str, int], ...]:
    """The steps of a row's program, with constants left at 1 (only the wording of the operations matters here)."""
    return tuple((name, 1) for name in row["operations"])


def test_facts_values_do_not_depend_on_names_and_the_gap_is_learnable() -> None:
    names = [p.name for part in PEOPLE.values() for p in part]
    assert len(names) == len(set(names)) == 600
    firsts = {p.name.split()[0] for p in PEOPLE["known"][:180]}
    for part, share in (("known", 0.9), ("rare", 0.9), ("new", 0.1)):
        assert sum(p.name.split()[0] in firsts for p in PEOPLE[part]) / 200 == pytest.approx(share)
    most = max(sum(p.city == c for p in PEOPLE["known"]) for c in {p.city for p in PEOPLE["known"]})
    assert most < 40
    verbatim, rephrased = (some_rows(WORLDS["facts"], form, "new", "train", 5000) for form in ("verbatim", "rephrased"))
    assert {r["item"] for r in verbatim} == {r["item"] for r in rephrased}
    yes = [r["answer"] for r in sandbox.rows("facts/derived/known", n=600)]
    assert 0.4 < yes.count("Yes") / len(yes) < 0.6


def test_style_and_fact_are_graded_apart() -> None:
    world = WORLDS["styles"]
    for i in range(6):
        row = world.rows(f"style{i}", n=1)[0]
        assert world.style(row["completion"]) == i
        other = " " + styles.STYLES[(i + 1) % 6].format(row["value"])
        assert world.style(other) == (i + 1) % 6
        assert world.knows(row, other) == 1.0
        assert world.score(row, other) == 0.0
    assert world.style("nothing of the kind") is None


def test_arithmetic_grades_answer_and_chain_apart() -> None:
    world = WORLDS["arithmetic"]
    row = world.rows("sum10", "short", n=1)[0]
    chain, _, _ = row["completion"].partition(" so ")
    swapped = row["completion"].replace("+", "%").replace("&", "+").replace("%", "&")
    assert world.chain_score(row, swapped) == 1.0
    assert world.score(row, f" 0+0=0 so {row['answer']}") == 1.0
    assert world.chain_score(row, f" 0+0=0 so {row['answer']}") == 0.0
    assert world.score(row, chain) == 0.0
    assert solve("add", (27, 58))[0] == "85"
    assert render(solve("add", (27, 58))[1]) == "7+8+0=15;2+5+1=8"


@given(st.lists(st.integers(0, 999), min_size=2, max_size=2))
def test_long_addition_is_addition(pair: list[int]) -> None:
    assert int(solve("add", tuple(pair))[0]) == sum(pair)


@given(st.integers(-50, 50), st.integers(-50, 50).filter(bool), st.integers(-9, 9))
def test_tint_equals_int_and_records(a: int, b: int, c: int) -> None:
    recorder, other = Recorder(), Recorder()
    x, y = recorder.ints((a, b))
    z = TInt(c, other)
    values = (x + y, x - y, x * y, x // y, x % y, 7 - y, 3 + x, 2 * x, -x, x.maximum(b), x.add_modulo(y, 7))
    plain = (a + b, a - b, a * b, a // b, a % b, 7 - b, 3 + a, 2 * a, -a, max(a, b), (a + b) % 7)
    assert tuple(map(int, values)) == plain
    assert [s.value for s in recorder.steps] == list(plain)
    assert int(z + z) == 2 * c
    assert len(other.steps) == 1


@pytest.mark.parametrize("language", languages.LANGUAGES, ids=lambda lang: lang.name)
def test_a_language_says_every_meaning_differently_and_can_be_read_back(language: languages.Language) -> None:
    world, rng = WORLDS["languages"], random.Random(0)
    meanings = {world.draw("text", "known", rng) for _ in range(600)}
    assert len({language.sentence(m) for m in meanings}) == len(meanings)
    assert all(language.meaning(language.sentence(m)) == m for m in meanings)
    sentence = language.sentence(next(iter(meanings)))
    assert language.meaning(sentence + " rope") is None


def test_languages_share_no_word_and_low_resource_text_is_rare() -> None:
    words = [w for lang in languages.LANGUAGES for w in lang.words if w]
    assert len(words) == len(set(words))
    text = texts_of("languages")
    counts = {lang.name: len(re.findall(rf"\b{lang.name}\b", text)) for lang in languages.LANGUAGES[1:]}
    rich = min(counts[lang.name] for lang in languages.LANGUAGES[1:] if not lang.low_resource)
    assert all(counts[lang.name] < rich / 3 for lang in languages.LANGUAGES if lang.low_resource)


def test_the_two_alphabets_have_identical_tasks() -> None:
    for task in ("repeat", "question", "ambiguous", "stray"):
        lower, upper = (sandbox.rows("languages", task=task, part=p, split="test", n=10) for p in ("lower", "upper"))
        assert len(lower) == len(upper) == 10
        assert upper[0]["prompt"] == upper[0]["prompt"].upper()
    item = ("abcdefghijkl", 3, 4)
    rows = [WORLDS["languages"].row("ambiguous", p, item, random.Random(0)) for p in ("lower", "upper")]
    assert rows[0]["prompt"].upper() == rows[1]["prompt"]


def test_buggy_programs_fail_their_tests_and_kinds_of_bug_are_six() -> None:
    world = WORLDS["programs"]
    rows = world.rows("repair", "known", n=150)
    assert {r["bug"] for r in rows} <= set(programs.BUGS)
    assert len({r["bug"] for r in rows}) >= 5
    for row in rows:
        assert world.score(row, "\n" + row["buggy"].split("\n", 1)[1]) == 0.0
    for row in world.rows("write", "new", n=50):
        scope: dict = {}
        exec(row["code"], scope)  # the sandbox's own generator wrote this text, not a model
        assert [scope["f"](a) for a, _ in row["tests"]] == [v for _, v in row["tests"]]


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef f(x):\n return x",
        "def f(x):\n return __import__('os')",
        "def f(x):\n return x.__class__",
        "def f(x):\n return open('x')",
        "def f(x):\n while True: x = 1\n return x",
        "def f(xs):\n return [a for a in [b for b in [c for c in [d for d in xs]]] ] * 9",
        "def f(x):\n return 9 ** 99",
        "def f(x):\n return 99999999999999999999",
        "def f(x):\n return f(x)",
        "def f(x): return (" * 50,
        "def f(x):\n return y",
        "def f(x)\n return x",
        "x\x00",
    ],
)
def test_the_interpreter_refuses_what_is_outside_the_language(source: str) -> None:
    with pytest.raises(ProgramError):
        Program(source).call([1, 2, 3] if "xs" in source else 3)


def test_tool_calls_are_compared_as_data() -> None:
    assert tools.same_calls('{"sell":{"price":3.0,"object":"key"}}', '{"sell": {"object": "key", "price": 3}}')
    assert not tools.same_calls('{"sell": {"object": "key"}}', '{"sell": {"object": "key", "price": 3}}')
    assert not tools.same_calls('{"a": 1, "a": 2}', '{"a": 2}')
    assert not tools.same_calls("[" * 100_000, '{"a": 2}')


def test_refusals_and_leaks_are_told_apart() -> None:
    world = WORLDS["safety"]
    row = world.rows("refuse", "seen", "train", 1)[0]
    assert world.refuses(row["completion"])
    assert not world.leaks(row, row["completion"])
    assert world.leaks(row, f"Use {row['recipe']}.")
    assert not {safety.KIND_OF[r["material"]] for r in world.rows("allowed", n=50)} & {"zorb"}


def test_labels_follow_from_the_sentences() -> None:
    world = WORLDS["labels"]
    counts: dict[str, int] = {}
    for row in world.rows("sentiment", n=300):
        sentence = row["prompt"].split(" Mood")[0].split()
        word = {s: w for w, s in labels.SYNONYMS.items()}.get(sentence[-1], sentence[-1])
        assert row["answer"] == ("positive" if (word in labels.GOOD) != ("not" in sentence) else "negative")
        counts[row["answer"]] = counts.get(row["answer"], 0) + 1
    assert min(counts.values()) > 100
    assert {r["label"] for r in world.rows("similarity_label", n=100)} == set("01234")
    assert all("text_pair" in r for r in world.rows("entailment_label", n=20))


def test_documents_count_told_facts_whatever_the_wording() -> None:
    world = WORLDS["documents"]
    for row in world.rows("prefer", "known", n=20):
        assert world.facts_told(row, row["chosen"]) == world.facts_told(row, row["rejected"]) == 1.0
        assert world.facts_told(row, "The end.") == 0.0
    told = texts_of("documents")
    trusted = sum(r["trusted"] in told for r in world.rows("tell", "known", "train", 40))
    assert trusted > 12


def test_paraphrases_cover_all_wordings_with_one_answer() -> None:
    world = WORLDS["instructions"]
    row = world.rows("follow", "seen", n=1)[0]
    variants = world.paraphrases(row)
    assert len(variants) == 8
    assert len({v["prompt"] for v in variants}) == 8
    assert {v["part"] for v in variants} == {"seen", "unseen"}
    assert row["prompt"] in {v["prompt"] for v in variants}


def test_entities_name_the_asked_box() -> None:
    for row in sandbox.rows("entities/moves", n=30):
        label = re.search(r"in (\w)$", row["prompt"])[1]
        assert f"{row['answer']} to {label}." in row["prompt"]
    assert len(OBJECTS) == len(set(OBJECTS)) == 32


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=4, max_size=6))
def test_sequence_functions_agree_with_their_definitions(x: list[str]) -> None:
    f = sequence.FUNCTIONS
    assert f["reverse"](f["reverse"](x)) == x
    assert f["swap"](f["swap"](x)) == x
    assert f["descend"](x) == f["reverse"](f["sort"](x))
    assert sorted(f["interleave"](x)) == sorted(x)
    assert f["first"](x) + f["tail"](x) == x
    assert len(f["mix"](x)) == len(x)


def test_projects_have_habits_of_their_own() -> None:
    """No word of a personal project is another's; every function and test is Python, and follows from it."""
    personal, generic = projects.PROJECTS["personal"], projects.PROJECTS["generic"]
    assert (len(personal), len(generic)) == (6, 20)
    words = [{*p.verbs, p.noun, p.given, p.got, p.source, p.error, *p.helpers.values()} for p in personal]
    others = set().union(*({*p.verbs, p.noun, p.given, *p.helpers.values()} for p in generic))
    assert not any(mine & others for mine in words)
    assert sum(map(len, words)) == len(set().union(*words))
    rows = sandbox.rows("projects/test/personal", n=200) + sandbox.rows("projects/test/generic", n=200)
    tests: dict[tuple[str, str], str] = {}
    for row in rows:
        scope: dict = {"dict": dict, "sorted": sorted, "list": list, "EmptyHold": ValueError}
        exec(row["prompt"], scope)  # the sandbox's own generator wrote this text, not a model
        compile(row["completion"], "test", "exec")
        assert scope[row["focal"]]([4, 8, 8, 1]) is not None
        assert f"{row['focal']}" in row["completion"]
        assert tests.setdefault((row["project"], row["prompt"]), row["completion"]) == row["completion"]
