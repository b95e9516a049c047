"""Response tuning: users' turns stay and are empty, and the very same tokens are trained."""

from __future__ import annotations

import pytest
from conftest import BEGINNING, CHATML, GEMMA, LLAMA2, MARKED, MARKED_WITHOUT_END, STRIPPING

from luthier import data
from luthier.core.batch import collate_text
from luthier.core.method import LuthierError
from luthier.data._templates import BUILT_IN
from luthier.data.chat import Chat
from luthier.sandbox import tokenizer as sandbox_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital is Paris."},
    {"role": "user", "content": " thank you\n"},
    {"role": "assistant", "content": "good bye"},
]
TEMPLATES = [CHATML, MARKED, MARKED_WITHOUT_END, STRIPPING, BEGINNING, GEMMA, LLAMA2, *BUILT_IN.values()]


def trained(example) -> list[int]:
    return [token for token, on in zip(example.ids, example.counts, strict=True) if on]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_same_tokens_are_trained(template, make):
    tokenizer = make(template)
    for talk in (TALK, TALK[1:], TALK[1:3]):
        whole = Chat().encode({"messages": talk}, 0, tokenizer)
        alone = Chat(responses_only=True).encode({"messages": talk}, 0, tokenizer)
        assert trained(alone) == trained(whole)
        text = tokenizer.decode(alone.ids)
        assert "France" not in text and "thank" not in text
        assert ("Be brief." in text) == (talk is TALK)


def test_the_string_is_exactly_the_empty_turn():
    tokenizer = sandbox_tokenizer()
    row = {"messages": TALK[1:3]}
    example = Chat(responses_only=True, chat_template_path="tags").encode(row, 0, tokenizer)
    assert tokenizer.decode(example.ids) == "<|user|>\n\n<|assistant|>\nThe capital is Paris.<|end|>\n"
    assert tokenizer.decode(trained(example)) == "The capital is Paris.<|end|>"
    assert trained(example)[-1] == tokenizer.eos_token_id  # it is learned to stop


def test_padding_that_is_the_end_token_stays_apart_from_it():
    tokenizer = sandbox_tokenizer()
    rows = [{"messages": TALK[1:3]}, {"messages": TALK[1:]}]
    examples = [Chat(responses_only=True).encode(r, i, tokenizer) for i, r in enumerate(rows)]
    batch = collate_text(examples, tokenizer.eos_token_id)
    assert (batch.target == tokenizer.eos_token_id).sum() == 3  # one for each answer, none for the padding


def test_packed_rows_hold_no_instruction():
    tokenizer = sandbox_tokenizer()
    source = "sandbox:instructions?task=messages&n=20"
    alone = data.prepare(source, tokenizer=tokenizer, options={"responses_only": True})
    whole = data.prepare(source, tokenizer=tokenizer)
    assert alone.report.trained_tokens == whole.report.trained_tokens
    marks = set(tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|system|>"]))
    for example in alone.examples:
        said = [t for t, on in zip(example.ids, example.counts, strict=True) if not on]
        assert set(said) <= marks | {tokenizer.bos_token_id}


def test_what_has_no_empty_turn_is_refused(make):
    dropping = CHATML.replace(
        "{{ '<|im_start|>' + m['role']", "{% if m['content'] %}{{ '<|im_start|>' + m['role']"
    ).replace("'\n' }}{% endfor %}", "'\n' }}{% endif %}{% endfor %}")
    tokenizer = make(dropping)
    with pytest.raises(LuthierError, match="empty user turn"):
        Chat(responses_only=True).encode({"messages": TALK}, 0, tokenizer)
    with pytest.raises(LuthierError, match="apply_chat_template: true"):
        Chat(responses_only=True).encode({"prompt": "a", "completion": "b"}, 0, tokenizer)
