"""What a subject answers equals a plain forward pass, whatever the batch size."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import peft
import pytest
import torch
from tiny_models import bert, bert_classifier, gpt2, llama, t5, tokenizer

from luthier.core.method import LuthierError, Refusal
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy

TEXTS = ["the cat is here", "x", "in an on abcd er 1212", "hello there, how are you?", "ab"]
PROMPTS = ["the cat", "x is", "in an on: ", "hello there,", "1 + 1 ="]
COMPLETIONS = [" is in", " the", "abcd", " how are", " 2"]


def subject(kind: str, **options: object) -> Subject:
    made = {
        "llama": lambda: Subject(llama(), tokenizer(), **options),
        "bos": lambda: Subject(llama(), tokenizer("bos"), **options),
        "gpt2": lambda: Subject(gpt2(), tokenizer(), **options),
        "t5": lambda: Subject(t5(), tokenizer("seq2seq"), "seq2seq_lm", **options),
        "bert": lambda: Subject(bert(), tokenizer("masked"), "masked_lm", **options),
        "classifier": lambda: Subject(bert_classifier(3), tokenizer("masked"), "classification", **options),
    }
    return made[kind]()


@torch.no_grad()
def plain_logp(
    model: torch.nn.Module, context: list[int], continuation: list[int], start: list[int] | None = None
) -> list[float]:
    """One row, all logits, no padding."""
    if start is not None:
        decoder = torch.tensor([start + continuation[:-1]])
        logits = model(input_ids=torch.tensor([context]), decoder_input_ids=decoder).logits[0]
    else:
        logits = model(torch.tensor([context + continuation[:-1]])).logits[0, len(context) - 1 :]
    return [float(z.log_softmax(-1)[t]) for z, t in zip(logits, continuation, strict=True)]


@pytest.mark.parametrize("kind", ["llama", "bos", "gpt2", "t5"])
@pytest.mark.parametrize("size", [1, 37, 4096])
def test_logp_is_a_plain_forward(kind: str, size: int) -> None:
    s = subject(kind, tokens_per_batch=size)
    found, counts = s.logp(PROMPTS, COMPLETIONS)
    for p, c, logp, n in zip(PROMPTS, COMPLETIONS, found, counts, strict=True):
        context, continuation = s.encode_pair(p, c)
        expected = plain_logp(s.model, context, continuation, [0] if kind == "t5" else None)
        assert n == len(continuation)
        assert logp == pytest.approx(sum(expected), abs=2e-4)


@pytest.mark.parametrize("kind", ["llama", "bos", "gpt2"])
def test_token_logp_covers_every_token(kind: str) -> None:
    s = subject(kind, tokens_per_batch=64)
    for text, logp in zip(TEXTS, s.token_logp(TEXTS), strict=True):
        ids = tokenizer()(text)["input_ids"]
        np.testing.assert_allclose(logp, plain_logp(s.model, [s.prefix_id], ids), atol=2e-4)


def test_long_texts_roll_through_the_window() -> None:
    s = subject("llama", max_length=8)
    ids = tokenizer()(TEXTS[3])["input_ids"]
    (found,) = s.token_logp([TEXTS[3]])
    assert len(found) == len(ids) > 16
    np.testing.assert_allclose(found[:8], plain_logp(s.model, [s.prefix_id], ids[:8]), atol=2e-4)
    np.testing.assert_allclose(found[8:16], plain_logp(s.model, ids[7:8], ids[8:16]), atol=2e-4)


def test_prompt_and_completion_are_encoded_as_one_text() -> None:
    s = subject("llama")
    context, continuation = s.encode_pair("see t", "here")  # together they hold the token "th"
    whole = tokenizer()("see there")["input_ids"]
    assert len(context) == len(tokenizer()("see t")["input_ids"])
    assert continuation == whole[len(context) :] != tokenizer()("here")["input_ids"]
    context, continuation = s.encode_pair("one: ", "two")
    assert tokenizer().decode(context) == "one:"
    assert tokenizer().decode(continuation) == " two"


def test_next_token_and_distributions() -> None:
    s = subject("llama", tokens_per_batch=48)
    with torch.no_grad():
        expected = [llama()(torch.tensor([tokenizer()(t)["input_ids"]])).logits[0].log_softmax(-1) for t in TEXTS]
    np.testing.assert_allclose(s.next_token_logp(TEXTS), torch.stack([e[-1] for e in expected]), atol=2e-4)
    found = dict(s.distributions(TEXTS))
    assert sorted(found) == list(range(len(TEXTS)))
    for i, logp in found.items():
        np.testing.assert_allclose(logp, expected[i][:-1], atol=2e-4)


def test_head_runs_at_asked_positions_only() -> None:
    s, seen = subject("llama"), []
    handle = llama().lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    _, counts = s.logp(PROMPTS, COMPLETIONS)
    handle.remove()
    assert sum(seen) == counts.sum()


def test_masked_model_masks_each_token() -> None:
    s = subject("bert", tokens_per_batch=64)
    text, ids = TEXTS[0], tokenizer("masked")(TEXTS[0])["input_ids"]
    expected = []
    for t in range(1, len(ids) - 1):
        masked = torch.tensor([[*ids[:t], 4, *ids[t + 1 :]]])
        with torch.no_grad():
            expected.append(float(bert()(masked).logits[0, t].log_softmax(-1)[ids[t]]))
    np.testing.assert_allclose(s.token_logp([text])[0], expected, atol=2e-4)
    logp, counts = s.logp(["the cat"], [" is here"])
    assert counts[0] == len(tokenizer()(" is here")["input_ids"])
    assert logp[0] == pytest.approx(sum(expected[-counts[0] :]), abs=1e-3)


@pytest.mark.parametrize("size", [1, 4096])
def test_class_probabilities(size: int) -> None:
    s = subject("classifier", tokens_per_batch=size)
    pairs = [(t, "x y") for t in TEXTS]
    for texts in (TEXTS, pairs):
        found = s.class_probabilities(texts)
        for text, p in zip(texts, found, strict=True):
            inputs = tokenizer("masked")(*([text] if isinstance(text, str) else text), return_tensors="pt")
            with torch.no_grad():
                np.testing.assert_allclose(p, s.model(**inputs).logits.softmax(-1)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bos", "gpt2", "t5"])
def test_generation_does_not_depend_on_batches_or_order(kind: str) -> None:
    texts = [subject(kind, decoder=Greedy(), tokens_per_batch=n).generate(PROMPTS, 12) for n in (1, 80, 4096)]
    assert texts[0] == texts[1] == texts[2]
    assert subject(kind, decoder=Greedy()).generate(PROMPTS[::-1], 12) == texts[0][::-1]
    assert subject(kind).generate(PROMPTS, 12) == texts[0], "transformers' own greedy search gives the same"


def test_messages_go_through_the_template() -> None:
    s = subject("bos", decoder=Greedy())
    assert s.render([{"role": "user", "content": "hi"}]) == "[user] hi\n[assistant] "
    messages = [{"role": "user", "content": "hi"}]
    assert s.encode(messages) == tokenizer()("[user] hi\n[assistant] ")["input_ids"], "no second BOS"
    assert s.encode("hi")[0] == 1
    assert s.encode("<bos>hi").count(1) == 1
    _, n = s.logp([messages], ["yes"])
    assert n[0] == len(tokenizer()("yes")["input_ids"])
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(LuthierError, match="no chat template"):
        Subject(llama(), bare).generate([messages], 2)


def test_window() -> None:
    s = subject("llama", max_length=12, decoder=Greedy())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cut = s.generate(["zzzzzzzzzzzzzzzzzz the cat"], 6)
    assert "lost its first" in str(told[0].message)
    assert cut == s.generate(["he cat"], 6) or len(told) == 1
    with pytest.raises(LuthierError, match="no room"):
        s.generate(["the cat is here again"], 12)


def test_what_a_subject_cannot_do() -> None:
    with pytest.raises(Refusal, match="classification head"):
        subject("llama").class_probabilities(["x"])
    with pytest.raises(Refusal, match="causal"):
        subject("t5").next_token_logp(["x"])
    with pytest.raises(Refusal, match="language model"):
        subject("classifier").logp(["x"], ["y"])


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_adapters(kind: str) -> None:
    """Positions are found behind a prompt that the wrapper puts in front."""
    configs = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(llama()), configs[kind]).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "prompt_encoder" in name:
                p.normal_()
    found, _ = Subject(model, tokenizer(), tokens_per_batch=60).logp(PROMPTS, COMPLETIONS)
    for i, (p, c) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        context, continuation = subject("llama").encode_pair(p, c)
        ids = torch.tensor([context + continuation])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(continuation) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum()
        assert found[i] == pytest.approx(float(expected), abs=2e-4)
    plain, _ = subject("llama").logp(PROMPTS, COMPLETIONS)
    assert np.abs(found - plain).max() > 1e-3


def test_nothing_asked() -> None:
    s = subject("llama", decoder=Greedy())
    assert s.generate([], 4) == []
    assert s.token_logp([]) == []
    assert len(s.token_logp([""])[0]) == 0
    assert s.logp([], [])[0].shape == (0,)
