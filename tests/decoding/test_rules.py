"""Rules: which scores change by how much, texts of a table as ids of a tokenizer, and rows in a batch."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.checks._models import model_of
from luthier.checks.decoding import PROMPTS
from luthier.core.method import Limits, LuthierError
from luthier.core.subject import Subject
from luthier.decoding.rules import CHANGES, Rules, spelled, token_of, user_mark
from luthier.sandbox import tokenizer as sandbox_tokenizer
from luthier.verbs.evaluate import evaluate
from luthier.verbs.generate import generate
from luthier.verbs.load import load

END, SIZE = 2, 40
LIMITS = Limits(stop_ids=(END,))
OFF = Rules(strength=0.0, changes={}, diversity=0.0)
CARD = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}\n"
    "{% endfor %}"
)


def r(rules: Rules, prompt: list[int], said: list[int]) -> list[float]:
    zeros = torch.zeros(SIZE, dtype=torch.float64)
    return rules.shaped(zeros, prompt, said, LIMITS).tolist()


def llama_like() -> PreTrainedTokenizerFast:
    """Whole words, each with or without the blank in front of it, and a blank put before every text, as in Llama-2."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "\n",
        *(f"{b}{w}" for w in ("I", "We", "should", "<", "|") for b in ("", "▁")),
    ]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always", split=True), pre_tokenizers.Split("\n", "isolated")]
    )
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def test_the_pull_towards_the_end() -> None:
    """0 before the first token, half after 125 of 250, all of it from 250 on; or gone from there on."""
    rules = replace(OFF, strength=15.0)
    assert [r(rules, [5], [7] * t)[END] for t in (0, 125, 250, 400)] == [0.0, 7.5, 15.0, 15.0]
    assert r(rules, [5], [7] * 249)[END] == pytest.approx(15 * 249 / 250)
    assert [r(replace(rules, after="drop"), [5], [7] * t)[END] for t in (0, 125, 250, 400)] == [0.0, 7.5, 0.0, 0.0]


def test_only_what_is_listed_changes() -> None:
    rules = replace(OFF, strength=15.0, ids={3: -4.0, 9: 1.0}, diversity=1.5)
    found = r(rules, [20, 9, 20], [30] * 25)
    assert {w: x for w, x in enumerate(found) if x} == {END: 1.5, 3: -4.0, 9: -0.5, 20: -1.5, 30: -1.5}


def test_a_token_said_five_times_is_one_that_was_said() -> None:
    rules = replace(OFF, diversity=1.5)
    assert r(rules, [5, 5], [7] * 5)[7] == r(rules, [5], [7])[7] == -1.5
    assert r(rules, [5, END], [7, END])[END] == 0.0  # what ends a row is never discouraged


def test_counted_from_the_last_user_turn() -> None:
    """Tokens of the mark and before it are free, those of the instruction and of the assistant's mark are not."""
    rules = replace(OFF, diversity=1.0, openings=((8, 9), (8, 9, 10)))
    found = r(rules, [11, 8, 9, 12, 8, 9, 10, 13, 14], [15])
    assert [w for w, x in enumerate(found) if x] == [13, 14, 15]
    assert [w for w, x in enumerate(r(rules, [11, 8, 12], [15])) if x] == [8, 11, 12, 15]  # no mark: the whole prompt


def test_all_rules_off_is_the_base() -> None:
    scores = torch.randn(SIZE)
    assert torch.equal(OFF.shaped(scores, [5, 6], [7, 8], LIMITS), scores)


def test_the_product_of_both_models_is_drawn_from() -> None:
    """p is proportional to p_base times p_rule, whatever their normalisers are."""
    rules = replace(
        OFF, strength=6.0, length=3, ids={4: 2.0, 5: -1.0}, diversity=0.7, choose={"name": "nucleus", "top_p": 1.0}
    )
    base = torch.randn(SIZE, dtype=torch.float64).log_softmax(-1)
    offset = torch.tensor(r(rules, [6, 7], [8, 9]), dtype=torch.float64)
    wanted = base.exp() * offset.softmax(-1)
    p = rules.chooser.probability(rules.shaped(base, [6, 7], [8, 9], LIMITS)[None])[0]
    torch.testing.assert_close(p, wanted / wanted.sum())


def test_rows_in_a_batch_are_rows_alone() -> None:
    """Eight prompts of different lengths, padded on the left, greedy and drawn: t counts what was said, not columns."""
    model = model_of("llama").eval()
    prompts = [list(p) for p in (*PROMPTS, [3, 4], [5, 6, 7, 8, 9, 10, 11, 12, 13], [14])]
    for choose in ("greedy", {"name": "nucleus", "top_p": 0.9}):
        rules = replace(Rules.example(), choose=choose)
        limits = Limits(max_new_tokens=8, stop_ids=(17,), seed=4)
        together = rules.generate(model, prompts, limits)
        alone = [rules.generate(model, [p], limits)[0] for p in prompts]
        assert [(g.ids, g.stopped) for g in together] == [(g.ids, g.stopped) for g in alone]
        assert len({len(g.ids) for g in together}) > 1


def test_texts_with_and_without_a_blank_are_two_tokens() -> None:
    for tokenizer in (sandbox_tokenizer(), llama_like()):
        bare, blank = token_of("I", tokenizer), token_of(" I", tokenizer)
        line = spelled("\n", tokenizer)
        assert bare != blank and len(line) == 1
        assert tokenizer.convert_ids_to_tokens(bare) == "I" and tokenizer.convert_ids_to_tokens(blank) in ("ĠI", "▁I")
        one = replace(OFF, changes={"I": -5.0}).for_tokenizer(tokenizer)
        both = replace(OFF, changes={"I": -5.0}, spaced=True).for_tokenizer(tokenizer)
        assert one.ids == {bare: -5.0} and both.ids == {bare: -5.0, blank: -5.0}


def test_a_text_of_several_tokens_is_an_error_unless_its_first_is_meant() -> None:
    tokenizer = sandbox_tokenizer()
    with pytest.raises(LuthierError, match=r"' should' is 4 tokens.*allow_multi: first"):
        Rules(changes={" should": -6.0}).for_tokenizer(tokenizer)
    first = replace(OFF, changes={" should": -6.0}, allow_multi="first").for_tokenizer(tokenizer)
    assert first.ids == {tokenizer(" should", add_special_tokens=False)["input_ids"][0]: -6.0}
    with pytest.raises(LuthierError, match="no token for 'What'"):
        Rules(changes={"What": -5.0}).for_tokenizer(llama_like())
    with pytest.raises(LuthierError, match="changes otherwise"):
        Rules(changes={" should": -6.0, " s": 1.0, " sh": 2.0}, allow_multi="first").for_tokenizer(tokenizer)
    assert len(CHANGES) == 15


def test_ids_of_one_tokenizer_are_not_used_for_another() -> None:
    """Bound again, the table is looked up again; ids that the model does not have are refused."""
    rules = Rules(changes={"I": -5.0, " I": -4.0})
    here, there = sandbox_tokenizer(), llama_like()
    assert (
        rules.for_tokenizer(here).for_tokenizer(there).ids
        == rules.for_tokenizer(there).ids
        != rules.for_tokenizer(here).ids
    )
    with pytest.raises(LuthierError, match="token 4000 is none of the model's 40"):
        r(replace(OFF, ids={4000: 1.0}), [5], [6])
    with pytest.raises(LuthierError, match="ask a subject"):
        r(Rules(), [5], [6])


def test_the_users_mark_is_read_off_the_template() -> None:
    tokenizer = sandbox_tokenizer()
    assert user_mark(tokenizer) == "<|user|>"
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "copy a b"}]
    bound = replace(OFF, diversity=1.0).for_tokenizer(tokenizer)
    ids = Subject(model_of("llama"), tokenizer).encode(prompt)
    counted = bound.counted(ids)
    assert tokenizer.decode(counted) == "copy a b<|assistant|>"
    tokenizer.chat_template = CARD
    assert user_mark(tokenizer) == "<|user|>\n"
    tokenizer.chat_template = None
    assert user_mark(tokenizer) == ""


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(LuthierError, match="length is 0"):
        Rules(length=0)
    with pytest.raises(LuthierError, match="token by token"):
        Rules(choose="beam")


def test_asked_by_name() -> None:
    """`luthier generate` with rules: a strong pull ends every answer at once after its first tokens."""
    loaded = load("nano-1m")
    rules = {"name": "rules", "changes": {" I": -5.0}, "strength": 60.0, "length": 2}
    prompts = [[{"role": "user", "content": "Say something long."}], "once upon a time"]
    said = generate(loaded, prompts, decoding=rules, max_new_tokens=12)
    ids = [loaded.tokenizer(s, add_special_tokens=False)["input_ids"] for s in said]
    assert all(len(i) <= 2 for i in ids)
    assert said != generate(loaded, prompts, max_new_tokens=12)


def test_evaluated_against_the_base_without_rules() -> None:
    task = {
        "name": "stops",
        "scorer": "stopping",
        "data": "sandbox:instructions?task=messages&split=test&n=6",
        "max_new_tokens": 8,
    }
    rules = {"name": "rules", "changes": {}, "strength": 60.0, "length": 1, "diversity": 0.0}
    found = evaluate("nano-1m", [task], base="nano-1m", decoding=rules)
    assert found["tuned"]["stops"]["stopped"]["value"] == 1.0
    assert found["base"]["stops"] == evaluate("nano-1m", [task])["stops"]
