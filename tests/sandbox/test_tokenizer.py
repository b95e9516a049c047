"""The tokenizer gives back any text, keeps digits and symbols single; its chat template marks what is trained."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier import sandbox
from luthier.sandbox import tokens
from luthier.sandbox.lexicon import LETTERS, OBJECTS
from luthier.sandbox.world import chat
from luthier.sandbox.worlds.sequence import HELD_OUT, PRETRAINED

TOK = sandbox.tokenizer()


@given(st.text(max_size=60))
@example(" a  b\n\n c\t\r\n ")
@example("日本語 ñandú 🎻\u200d\x00 <b> 3+4=7;12")
@example("")
def test_any_text_comes_back(text: str) -> None:
    assert TOK.decode(TOK(text).input_ids) == text


def test_vocabulary_is_small_and_bytes_are_in_it() -> None:
    assert len(TOK) <= 2048
    assert TOK.unk_token is None
    assert set(tokens.pre_tokenizers.ByteLevel.alphabet()) <= set(TOK.get_vocab())


def test_digits_symbols_and_task_words_are_single_tokens() -> None:
    assert TOK.tokenize("1987 42") == ["1", "9", "8", "7", "Ġ4", "2"]
    for word in [*LETTERS, *LETTERS.upper(), *OBJECTS]:
        assert len(TOK.tokenize(f" {word}")) == 1
    for task in PRETRAINED:
        assert len(TOK.tokenize(task)) == 1 or task == "interleave"
    for task in HELD_OUT:
        assert len(TOK.tokenize(task)) <= 3
    for special in tokens.SPECIALS:
        assert TOK.tokenize(special) == [special]


def test_prompt_and_completion_meet_between_tokens() -> None:
    for name, world in sandbox.worlds().items():
        for task, declared in world.catalogue.items():
            for row in world.rows(task, n=2) if declared.kind == "prompt" else []:
                joint = TOK(row["prompt"] + row["completion"]).input_ids
                assert joint == TOK(row["prompt"]).input_ids + TOK(row["completion"]).input_ids, (name, task)


def test_texts_get_no_hidden_tokens_and_the_layouts_get_theirs() -> None:
    plain = TOK("rope").input_ids
    assert TOK("rope", add_special_tokens=False).input_ids == plain
    encoder = tokens.shaped(sandbox.tokenizer(), "encoder")
    assert encoder("rope").input_ids == [TOK.bos_token_id, *plain, TOK.eos_token_id]
    pair = [TOK.bos_token_id, *plain, TOK.eos_token_id, *plain, TOK.eos_token_id]
    assert encoder("rope", "rope").input_ids == pair
    assert tokens.shaped(sandbox.tokenizer(), "seq2seq")("rope").input_ids == [*plain, TOK.eos_token_id]


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Please reverse: a b c"},
    {"role": "assistant", "content": "c b a"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "done"},
]


def test_chat_template_marks_each_assistant_turn_with_its_end() -> None:
    out = TOK.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    trained = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert TOK.decode(trained) == "c b a<|end|>done<|end|>"
    assert TOK.decode(out["input_ids"]) == chat(*((m["role"], m["content"]) for m in MESSAGES))


def test_generation_prompt_is_a_prefix_of_the_full_chat() -> None:
    asked = TOK.apply_chat_template(MESSAGES[:2], add_generation_prompt=True, tokenize=False)
    assert TOK.apply_chat_template(MESSAGES[:3], tokenize=False) == asked + "c b a<|end|>"
    row = sandbox.rows("instructions/follow/seen", n=1)[0]
    turn = [{"role": "user", "content": row["prompt"].removeprefix("<|user|>").removesuffix("<|assistant|>")}]
    assert TOK.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) == row["prompt"]


def test_chat_template_renders_tools_and_calls_and_refuses_unknown_roles() -> None:
    call = {"function": {"name": "timer", "arguments": {"minutes": 7}}}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = TOK.apply_chat_template(turns, tools=[{"name": "timer"}], tokenize=False)
    assert text.startswith('<|system|>Tools: [{"name": "timer"}]<|user|>hi<|assistant|>[{')
    assert '"minutes": 7' in text
    assert text.endswith("<|end|>")
    with pytest.raises(Exception, match="unknown role critic"):
        TOK.apply_chat_template([{"role": "critic", "content": "hi"}], tokenize=False)
