"""What counts decodes to exactly the text that is trained, whatever the template, the tokenizer and the characters."""

from __future__ import annotations

import pytest
from conftest import (
    BEGINNING,
    CHATML,
    FORGETFUL,
    GEMMA,
    LLAMA2,
    MARKED,
    MARKED_WITHOUT_END,
    STRIPPING,
    TOOLS,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.method import LuthierError, RowError
from luthier.data._preview import parts
from luthier.data.chat import Chat
from luthier.data.preference import Preference
from luthier.data.segments import Segments
from luthier.data.text import Text
from luthier.data.unpaired import Unpaired

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
words = st.text(max_size=30)
spoken = st.text(min_size=1, max_size=30).filter(str.strip)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def runs(example, tokenizer) -> list[str]:
    return [text for text, on in parts(example, tokenizer)[0][1] if on]


def whole(example, tokenizer) -> str:
    return "".join(text for text, _ in parts(example, tokenizer)[0][1])


def same(got: list[str], wanted: list[str], shared: bool) -> bool:
    """Equal; where a token lies over the border, the run may begin a little earlier but never later."""
    wanted = [w for w in wanted if w]
    if not shared:
        return got == wanted
    return len(got) == len(wanted) and all(g.endswith(w) and len(g) - len(w) < 20 for g, w in zip(got, wanted))


def encoded(method, row, tokenizer):
    result = method.encode_rows([row], [0], tokenizer)[0]
    if isinstance(result, RowError):
        raise result
    return result.example, "a token holds trained and untrained text" in result.marks


TEMPLATES = {
    "chatml": (CHATML, "{}<|im_end|>", str),
    "marked": (MARKED, "{}<|im_end|>", str),
    "marked-without-end": (MARKED_WITHOUT_END, "{}<|im_end|>", str),
    "stripping": (STRIPPING, "{}<|im_end|>", str.strip),
    "beginning": (BEGINNING, "{}<|im_end|>", str),
    "gemma": (GEMMA, "{}<end_of_turn>", str.strip),
    "llama2": (LLAMA2, " {} </s>", str),
}


@pytest.mark.parametrize("trim", [False, True], ids=["offsets", "trimmed-offsets"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_any_characters_any_template(make, name: str, trim: bool) -> None:
    template, turn, change = TEMPLATES[name]
    tokenizer = make(template, trim=trim)

    @quick
    @given(st.lists(st.tuples(words, spoken), min_size=1, max_size=3))
    def check(rounds) -> None:
        messages = []
        for question, answer in rounds:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        example, shared = encoded(Chat(max_length=None), {"messages": messages}, tokenizer)
        assert same(runs(example, tokenizer), [turn.format(change(a)) for _, a in rounds], shared)
        assert example.ids == tokenizer.apply_chat_template(messages)["input_ids"]

    check()


@pytest.mark.parametrize("options", [{}, {"bos": True}, {"trim": True}], ids=["plain", "bos", "trimmed-offsets"])
def test_any_characters_without_template(make, options: dict) -> None:
    tokenizer = make(**options)

    def joined(ids) -> str:
        return tokenizer.decode(ids).removeprefix("<s>")

    @quick
    @given(words, spoken)
    def check(prompt, completion) -> None:
        row, full = {"prompt": "x" + prompt, "completion": completion}, "x" + prompt + completion + "</s>"
        example, shared = encoded(Chat(max_length=None), row, tokenizer)
        assert same(runs(example, tokenizer), [completion + "</s>"], shared)
        assert example.ids[-1] == tokenizer.eos_token_id
        assert joined(example.ids) == full
        group, _ = encoded(Unpaired(max_length=None), row | {"label": True}, tokenizer)
        assert joined(group.prompt + group.answers[0]) == full
        assert tokenizer.decode(group.answers[0]).endswith(completion + "</s>")
        text, _ = encoded(Text(max_length=None), {"text": completion}, tokenizer)
        assert runs(text, tokenizer) == [completion + "</s>"]

    check()


def test_any_segments(bare) -> None:
    @quick
    @given(st.lists(st.tuples(spoken, st.booleans()), min_size=1, max_size=5).filter(lambda s: any(on for _, on in s)))
    def check(pieces) -> None:
        row = {"segments": [{"text": t, "label": on} for t, on in pieces]}
        example, shared = encoded(Segments(max_length=None), row, bare)
        assert bare.decode(example.ids) == "".join(t for t, _ in pieces)
        wanted: list[str] = []
        for i, (text, on) in enumerate(pieces):
            if on and i and pieces[i - 1][1]:
                wanted[-1] += text
            elif on:
                wanted.append(text)
        if not shared:
            assert runs(example, bare) == wanted

    check()


def test_any_pair(chatml) -> None:
    @quick
    @given(words, spoken, spoken)
    def check(prompt, good, bad) -> None:
        if good == bad:
            return
        row = {"prompt": [{"role": "user", "content": prompt}], "chosen": good, "rejected": bad}
        example, _ = encoded(Preference(max_length=None), row, chatml)
        for answer, text in zip(example.answers, (good, bad)):
            assert chatml.decode(answer).endswith(text + "<|im_end|>")
            rendered = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
            assert chatml.decode(example.prompt + answer) == rendered

    check()


def test_a_joined_token_at_the_border_is_trained(joining) -> None:
    example, shared = encoded(Chat(), {"prompt": "xa", "completion": "bc"}, joining)
    assert shared
    assert runs(example, joining) == ["abc</s>"]
    group, _ = encoded(Preference(), {"prompt": "xa", "chosen": "bc", "rejected": "ac"}, joining)
    assert joining.decode(group.prompt) == "x"
    assert [joining.decode(a) for a in group.answers] == ["abc</s>", "aac</s>"]


def test_a_token_over_the_end_of_a_segment_is_trained_and_counted(joining) -> None:
    row = {"segments": [{"text": "xa", "label": True}, {"text": "bc", "label": False}]}
    example, shared = encoded(Segments(), row, joining)
    assert shared
    assert runs(example, joining) == ["xab"]


def test_a_tokenizer_without_offsets_gives_the_same(make) -> None:
    fast = make(MARKED, bos=True)

    class Slow:
        """The same tokens, no offsets."""

        is_fast = False

        def __getattr__(self, name):
            return getattr(fast, name)

        def encode(self, text, add_special_tokens):
            return fast.encode(text, add_special_tokens=False)

        def build_inputs_with_special_tokens(self, ids):
            return [fast.bos_token_id, *ids]

    for row in (
        {"messages": TALK},
        {"prompt": "Who is it?\n", "completion": "No one."},
        {"prompt": "", "completion": "x"},
    ):
        assert encoded(Chat(), row, Slow()) == encoded(Chat(), row, fast)


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_END])
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["two<|im_end|>", "four<|im_end|>"]),
        ({"train_on_eos": "last"}, ["two", "four<|im_end|>"]),
        ({"train_on_eos": "none"}, ["two", "four"]),
        ({"train_on_eos": "all"}, ["<|im_end|>", "<|im_end|>", "two<|im_end|>", "<|im_end|>", "four<|im_end|>"]),
        ({"roles_to_train": ("user",)}, ["one<|im_end|>", "three<|im_end|>"]),
        ({"roles_to_train": ("system", "assistant")}, ["S<|im_end|>", "two<|im_end|>", "four<|im_end|>"]),
    ],
)
def test_masking_options(make, template: str, options: dict, wanted: list[str]) -> None:
    tokenizer = make(template)
    example, _ = encoded(Chat(**options), {"messages": TALK}, tokenizer)
    assert runs(example, tokenizer) == wanted


def test_everything_trained_but_the_begin_token(make) -> None:
    tokenizer = make(BEGINNING)
    for options in ({"train_on_inputs": True}, {"assistant_only_loss": False}):
        example, _ = encoded(Chat(**options), {"messages": TALK}, tokenizer)
        assert example.counts == [False] + [True] * (len(example) - 1)
        assert example.ids.count(tokenizer.bos_token_id) == 1
    plain = make(bos=True)
    for options in ({"train_on_inputs": True}, {"completion_only_loss": False}):
        example, _ = encoded(Chat(**options), {"prompt": "ab ", "completion": "cd"}, plain)
        assert runs(example, plain) == ["ab cd</s>"]


def test_begin_token_is_not_doubled(make) -> None:
    for template in (BEGINNING, GEMMA):
        tokenizer = make(template, bos=True)
        messages = TALK[1:3]
        example, _ = encoded(Chat(), {"messages": messages}, tokenizer)
        assert example.ids.count(tokenizer.bos_token_id) == 1
        assert not example.counts[0]


def test_switches_of_single_messages(chatml) -> None:
    for key in ("train", "loss", "weight"):
        talk = [dict(m) for m in TALK]
        talk[2][key], talk[3][key] = False, 1
        example, _ = encoded(Chat(), {"messages": talk}, chatml)
        assert runs(example, chatml) == ["three<|im_end|>", "four<|im_end|>"]
    with pytest.raises(RowError, match="contradict"):
        encoded(Chat(), {"messages": [TALK[1], TALK[2] | {"train": True, "loss": False}]}, chatml)
    with pytest.raises(RowError, match="`loss_scale` is not read"):
        encoded(Chat(), {"messages": [TALK[1], TALK[2] | {"loss_scale": 0.5}]}, chatml)


def test_prompt_messages_are_not_trained(chatml) -> None:
    example, _ = encoded(Chat(), {"prompt": TALK[:4], "completion": TALK[4:]}, chatml)
    assert runs(example, chatml) == ["four<|im_end|>"]
    example, _ = encoded(Chat(), {"prompt": TALK[:2], "completion": TALK[2:]}, chatml)
    assert runs(example, chatml) == ["two<|im_end|>", "four<|im_end|>"]


def test_system_message_is_added_where_there_is_none(chatml) -> None:
    with_system, _ = encoded(Chat(system="S"), {"messages": TALK[1:]}, chatml)
    assert with_system == encoded(Chat(system="T"), {"messages": TALK}, chatml)[0]
    with pytest.raises(LuthierError, match="apply_chat_template: true"):
        encoded(Chat(system="S"), {"prompt": "a", "completion": "b"}, chatml)


def test_tools_and_calls_are_rendered(make) -> None:
    tokenizer = make(TOOLS)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        TALK[1],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        TALK[4],
    ]
    example, _ = encoded(Chat(), {"messages": messages, "tools": '[{"name": "f"}]'}, tokenizer)
    assert runs(example, tokenizer) == ['{"name": "f", "arguments": {"x": 1}}<|im_end|>', "four<|im_end|>"]
    assert 'Tools: [{"name": "f"}]' in whole(example, tokenizer)
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    again = [messages[0], old, {"role": "function", "content": "2"}, TALK[4]]
    assert encoded(Chat(), {"messages": again, "tools": [{"name": "f"}]}, tokenizer)[0] == example


def test_a_template_that_rewrites_the_past_is_refused(make) -> None:
    tokenizer = make(FORGETFUL)
    thinking = [TALK[1], {"role": "assistant", "content": "<think>h</think>two"}, TALK[3], TALK[4]]
    with pytest.raises(RowError, match=r"cannot be masked.*message 2.*\{% generation %\}"):
        encoded(Chat(), {"messages": thinking}, tokenizer)
    example, _ = encoded(Chat(), {"messages": thinking[:2]}, tokenizer)
    assert runs(example, tokenizer) == ["<think>h</think>two<|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_built_in_templates(bare, name: str) -> None:
    example, _ = encoded(Chat(chat_template_path=name), {"messages": TALK}, bare)
    said = {"chatml": "{}<|im_end|>", "plain": " {}</s>"}[name]
    assert runs(example, bare) == [said.format("two"), said.format("four")]


def test_template_from_places(bare, tmp_path) -> None:
    (tmp_path / "t.jinja").write_text(CHATML)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML)
    for place in ("t.jinja", "model"):
        example, _ = encoded(Chat(chat_template_path=str(tmp_path / place)), {"messages": TALK}, bare)
        assert runs(example, bare) == ["two<|im_end|>", "four<|im_end|>"]
    with pytest.raises(LuthierError, match="one of chatml, plain"):
        encoded(Chat(chat_template_path="nowhere"), {"messages": TALK}, bare)


def test_messages_need_a_template(bare, chatml) -> None:
    with pytest.raises(LuthierError, match="no chat template: set chat_template_path"):
        encoded(Chat(), {"messages": TALK}, bare)
    with pytest.raises(LuthierError, match="apply_chat_template is false"):
        encoded(Chat(apply_chat_template=False), {"messages": TALK}, chatml)
    with pytest.raises(LuthierError, match="apply_chat_template: true, but"):
        encoded(Chat(apply_chat_template=True), {"prompt": "a", "completion": "b"}, bare)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "is empty"),
        ("hello", "not a list of messages"),
        ([{"role": "user", "content": "x"}], "no message to train on"),
        ([{"role": "users", "content": "x"}], "the role 'users'"),
        ([{"content": "x"}], "no role"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": [{"type": "image"}]}, TALK[2]], "part of type 'image'"),
        ([{"role": "user", "content": 3}, TALK[2]], "content is not text"),
        ([TALK[2]], "starts with an assistant turn"),
    ],
)
def test_unusable_conversations(chatml, messages, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        encoded(Chat(), {"messages": messages}, chatml)


def test_truncation_keeps_the_end_asked_for(make) -> None:
    tokenizer = make(bos=True)
    row = {"prompt": "one two three four five six ", "completion": "seven eight nine"}
    full, _ = encoded(Chat(), row, tokenizer)
    n, k = len(full), sum(full.counts)
    start = Chat(max_length=n - 2).encode_rows([row], [0], tokenizer)[0]
    assert start.example.ids == full.ids[: n - 2]
    assert {"cut", "answer cut"} <= start.marks
    end = Chat(max_length=k + 3, truncation_mode="keep_end").encode_rows([row], [0], tokenizer)[0]
    assert end.example.ids == [full.ids[0], *full.ids[n - k - 2 :]]
    assert sum(end.example.counts) == k
    assert "answer cut" not in end.marks
    with pytest.raises(RowError, match=r"answer lies beyond max_length 3.*keep_end"):
        encoded(Chat(max_length=3), row, tokenizer)
    with pytest.raises(RowError, match=f"{n} tokens, more than max_length {n - 1}"):
        encoded(Chat(max_length=n - 1, overlong="reject"), row, tokenizer)
    assert encoded(Chat(max_length=n, overlong="reject"), row, tokenizer)[0] == full


def test_truncation_of_pairs(make) -> None:
    tokenizer = make(bos=True)
    row = {"prompt": "one two three four five six", "chosen": " seven", "rejected": " eight nine ten"}
    full, _ = encoded(Preference(), row, tokenizer)
    p, a = len(full.prompt), max(map(len, full.answers))
    end = Preference(max_length=a + 3, truncation_mode="keep_end").encode_rows([row], [0], tokenizer)[0]
    assert end.example.prompt == [full.prompt[0], *full.prompt[-2:]]
    assert end.example.answers == full.answers
    assert end.marks == {"cut"}
    start = Preference(max_length=p + a - 1).encode_rows([row], [0], tokenizer)[0]
    assert start.example.prompt == full.prompt
    assert start.example.answers[1] == full.answers[1][:-1]
    assert start.marks == {"cut", "answer cut"}
    with pytest.raises(RowError, match="prompt fills max_length"):
        encoded(Preference(max_length=p), row, tokenizer)
