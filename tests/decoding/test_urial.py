"""The constant prompt: the same bytes for all questions, read once without a trace, stopped and cleaned; never cut."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import gpt2, llama, tokenizer

from luthier.core.layout import Layout, layout
from luthier.core.method import Limits, LuthierError, Refusal
from luthier.core.subject import Subject
from luthier.decoding import _family
from luthier.decoding._family import Primed, decode, primed, stream
from luthier.decoding.beam import Beam
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.decoding.urial import Urial
from luthier.verbs.generate import chat
from luthier.verbs.load import Loaded

QUERIES = ["the cat", "in an on abcd er", "x", "the cat?\n", "hello there, how are you?"]
SMALL = """
system: "hi.\\n"
query: "# Query:\\n```\\n{query}\\n```\\n"
answer: "# Answer:\\n```\\n{answer}\\n```\\n"
stop: ["# Query"]
examples:
  - {query: "the on", answer: "an er"}
  - {query: "er", answer: "no", refuses: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(SMALL)
    return str(tmp_path / "small.yaml")


def decoder(file: str, **options: object) -> Urial:
    return Urial(**{"examples": file, "k": 1, **options})


# ------------------------------------------------------------------------------------------------ the text


def test_the_prompt_is_the_same_bytes_up_to_the_question() -> None:
    for k in (0, 1, 3, 8):
        found = layout("assistant", k)
        texts = [found.prompt(q) for q in QUERIES]
        start = f"{found.constant}# Query:\n```\n"
        assert all(t.startswith(start) for t in texts)
        assert all(
            t[len(start) :] == f"{q.strip()}\n```\n\n# Answer:\n```\n" for q, t in zip(QUERIES, texts, strict=True)
        )
        assert found.constant.count("# Query:\n") == k
    sizes = [len(layout("assistant", k).constant.split()) for k in (0, 1, 3, 8)]
    assert 80 < sizes[0] < 160 and 600 < sizes[2] < 900 and sizes[3] > 1.8 * sizes[2]


def test_the_examples_without_refusals() -> None:
    every, kind = layout("assistant", 8), layout("assistant", 3, refusals=False)
    assert "can't help" in layout("assistant", 3).constant
    assert "can't help" not in kind.constant
    assert len(kind.examples) == 3 and set(kind.examples) < set(every.examples)
    with pytest.raises(LuthierError, match=r"9 examples were asked for, 'assistant' has 8"):
        layout("assistant", 9)


def test_a_conversation_is_its_turns_in_the_layout(file: str) -> None:
    found = layout(file, 1)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    said = found.prompt("a") + "b\n```\n# Query:\n```\nc\n```\n# Answer:\n```\n"
    assert found.prompt(turns) == said
    with pytest.raises(LuthierError, match=r"message 1 is 'system'.*`system`"):
        found.prompt([{"role": "system", "content": "x"}, *turns])
    with pytest.raises(LuthierError, match="last message has to be the user's"):
        found.prompt(turns[:2])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Gladly.\n```\n\n", "Gladly."),
        ("  Gladly.  ", "Gladly."),
        ("Code:\n```python\nx = 1\n```\n```", "Code:\n```python\nx = 1\n```"),  # its own fence, then the layout's
        ("Code:\n```python\nx = 1\n```", "Code:\n```python\nx = 1\n```"),  # its own fence alone
        ("Code:\n```\nx\n```\nThat is all.\n```", "Code:\n```\nx\n```\nThat is all."),
    ],
)
def test_the_mark_that_closes_an_answer_is_not_part_of_it(said: str, wanted: str) -> None:
    assert layout("assistant").clean(said) == wanted


def test_mistakes_in_a_layout_are_named(tmp_path: Path) -> None:
    for text, match in (
        ("quary: x", r"odd\.yaml: unknown key 'quary'"),
        ("query: no place", r"'query' needs \{query\} once"),
        ("examples: [{query: a}]", r"odd\.yaml: example 1 needs query and answer"),
    ):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(LuthierError, match=match):
            layout(str(tmp_path / "odd.yaml"))
    with pytest.raises(LuthierError, match=r"no layout 'gone': give a file, or one of assistant"):
        layout("gone")


# ------------------------------------------------------------------------------------------------ read once


@torch.no_grad()
@pytest.mark.parametrize("make", [llama, gpt2])
def test_read_once_is_read_whole(make: object) -> None:
    """Rows of different lengths behind one constant part, in a batch: tokens and log-probabilities of the plain way."""
    model, tok = make(), tokenizer()  # type: ignore[operator]
    constant = tok("the on in an er abcd")["input_ids"]
    rows = [constant + tok(q)["input_ids"] for q in QUERIES]
    limits = Limits(12, (2, 30), 0)
    once = primed(model, constant)
    assert isinstance(once, Primed)
    for way in (Greedy(), Nucleus(temperature=0.7, top_p=0.9), Beam(num_beams=3)):
        for a, b in zip(way.generate(once, rows, limits), way.generate(model, rows, limits), strict=True):
            assert (a.ids, a.stopped) == (b.ids, b.stopped)
            assert a.logp == pytest.approx(b.logp, abs=1e-3)
    source = stream(once)
    source.start(rows)
    assert source.ids.shape[1] == max(map(len, rows)) - len(constant), "only what follows the constant part is read"  # type: ignore[attr-defined]
    assert primed(model, constant).held is once.held, "what was read is kept"  # type: ignore[union-attr]
    before = [(k.clone(), v.clone()) for k, v in once.held.layers]
    decode(stream(once), rows, limits, Greedy().rule)
    assert all(torch.equal(a, b) for x, y in zip(before, once.held.layers) for a, b in zip(x, y)), "rows changed it"


@torch.no_grad()
def test_rows_that_begin_otherwise_share_what_they_can() -> None:
    model, limits = llama(), Limits(8, (), 0)
    once = primed(model, [7, 8, 9, 10])
    assert isinstance(once, Primed)
    for rows, n in (([[7, 8, 9, 10, 3], [7, 8, 11, 4]], 2), ([[7, 8], [7, 8, 9]], 1), ([[3, 4], [7, 8, 9, 10]], 0)):
        assert once.held.shared(rows) == n
        plain = Greedy().generate(model, rows, limits)
        assert [g.ids for g in Greedy().generate(once, rows, limits)] == [g.ids for g in plain]


def test_a_model_that_changed_reads_again() -> None:
    """Weights that moved, also behind torch's back, and an adapter that is switched: never an old model's keys."""
    model, ids = copy.deepcopy(llama()), [7, 8, 9, 10]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    rows, limits = [[*ids, 3], [*ids, 4, 5]], Limits(6, (), 0)

    def answers() -> tuple[object, object]:
        found = [[g.ids for g in Greedy().generate(m, rows, limits)] for m in (primed(model, ids), model)]
        return found[0], found[1]

    held = []
    for change in ("", "adapter", "step", "data"):
        if change == "step":
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if "lora_A" in n).mul_(-3.0)
        elif change == "data":
            model.get_base_model().model.layers[0].mlp.up_proj.weight.data.mul_(-1.0)
        if change == "adapter":
            with model.disable_adapter():
                once, plain = answers()
                held.append(primed(model, ids).held)  # type: ignore[union-attr]
        else:
            once, plain = answers()
            held.append(primed(model, ids).held)  # type: ignore[union-attr]
        assert once == plain, change
    assert len({id(h) for h in held}) == 4


def test_what_was_read_goes_with_the_model() -> None:
    model, before = copy.deepcopy(llama()), len(_family._HELD)
    primed(model, [7, 8, 9])
    assert len(_family._HELD) == before + 1
    del model
    assert len(_family._HELD) == before


# --------------------------------------------------------------------------------------------- asked as a subject


def test_answers_of_a_subject_are_those_of_the_whole_text(file: str) -> None:
    model, tok = llama(window=512), tokenizer()
    asked = Subject(model, tok, decoder=decoder(file)).generate(QUERIES, 16)
    texts = [layout(file, 1).prompt(q) for q in QUERIES]
    plain = Subject(model, tok, decoder=Greedy()).generate(texts, 16, ["# Query"])
    assert asked == [layout(file, 1).clean(t) for t in plain]
    turns = [{"role": "user", "content": QUERIES[0]}]
    assert Subject(model, tok, decoder=decoder(file, read_once=False)).generate([turns], 16) == asked[:1]
    a = Subject(model, tok, decoder=decoder(file)).logp(QUERIES[:2], ["an", "er on"])[0]
    for query, said, logp in zip(QUERIES, ("an", "er on"), a, strict=False):
        ids = [tok(layout(file, 1).prompt(query))["input_ids"], tok(said)["input_ids"]]
        assert logp == pytest.approx(Subject(model, tok).pair_logp([(ids[0], ids[1])])[0][0].sum(), abs=1e-3)


def test_a_stop_string_of_the_layout_that_is_split_over_tokens_ends_the_row(file: str, tmp_path: Path) -> None:
    model, tok = llama(window=512), tokenizer()
    free = Subject(model, tok, decoder=decoder(file)).generate(QUERIES, 20)
    said = next(t for t in free if len(t) > 10)
    stop = said[4:7]
    assert stop not in [tok.decode([i]) for i in range(len(tok))], "it must need several tokens"
    (tmp_path / "stops.yaml").write_text(SMALL.replace('stop: ["# Query"]', f"stop: {json.dumps([stop])}"))
    subject = Subject(model, tok, decoder=decoder(str(tmp_path / "stops.yaml")))
    assert subject.generate(QUERIES, 20)[free.index(said)] == said.split(stop)[0].strip()
    ids = subject.prompt_ids(QUERIES)
    assert any(g.stopped and len(g.ids) < 20 for g in subject.generations(ids, 20)), "the row ends, it is not only cut"


def test_a_prompt_that_does_not_fit_is_refused_and_never_cut(file: str) -> None:
    subject = Subject(llama(window=128), tokenizer(), decoder=decoder(file))
    for ask in (
        lambda: subject.generate(["the cat" * 30], 16),
        lambda: subject.candidates(["the cat" * 30], 1, 16),
        lambda: subject.logp(["the cat" * 30], ["an"]),
        lambda: subject.next_token_logp(["the cat" * 30]),
    ):
        with pytest.raises(LuthierError, match=r"do not fit the window of 128: use fewer examples"):
            ask()


def test_the_penalty_counts_what_was_said_alone(file: str) -> None:
    model, tok = llama(window=512), tokenizer()
    plain, held_back = (
        Subject(model, tok, decoder=decoder(file, repetition_penalty=p)).generations([[7, 8, 9, 3]], 12)[0].ids
        for p in (1.0, 1e6)
    )
    assert held_back[0] == plain[0], "no token of the prompt is held back"
    assert len(set(held_back)) == 12 > len(set(plain)), "no token twice"
    with pytest.raises(Refusal, match="greedy and nucleus, not with beam"):
        decoder(file, repetition_penalty=1.1, choose="beam").generate(model, [[7, 8]], Limits(2))


def test_other_decoders_inside_and_around(file: str) -> None:
    """Around several models, and as the choice of a sum of models: the layout goes with it."""
    base, other, tok = llama(0, 512), llama(1, 512), tokenizer()
    texts = [layout(file, 1).prompt(q) for q in QUERIES]
    steered = ProxyTuning(expert=other, anti_expert=base, alpha=0.5)
    plain = Subject(base, tok, decoder=steered).generate(texts, 10, ["# Query"])
    wanted = [layout(file, 1).clean(t) for t in plain]
    assert Subject(base, tok, decoder=decoder(file, choose=steered)).generate(QUERIES, 10) == wanted
    around = ProxyTuning(expert=other, anti_expert=base, alpha=0.5, choose=decoder(file))
    assert Subject(base, tok, decoder=around).generate(QUERIES, 10) == wanted
    assert isinstance(decoder(file, choose=steered).alone(), Urial)


def test_a_chat_keeps_its_turns_without_a_template(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tok, lines = llama(window=512), copy.deepcopy(tokenizer()), iter(["the cat", "x", ""])
    tok.chat_template = None
    monkeypatch.setattr("luthier.verbs.generate.load", lambda name, **more: Loaded(model, tok, "causal_lm", "tiny", ""))
    monkeypatch.setattr("builtins.input", lambda sign: next(lines))
    chat("tiny", max_new_tokens=6, decoding=decoder(file))
    subject = Subject(model, tok, decoder=decoder(file))
    first = subject.generate(["the cat"], 6)[0]
    turns = [("user", "the cat"), ("assistant", first), ("user", "x")]
    second = subject.generate([[{"role": r, "content": c} for r, c in turns]], 6)[0]
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_a_layout_says_what_it_needs() -> None:
    with pytest.raises(LuthierError, match="'answer' needs"):
        Layout(answer="{query}")
