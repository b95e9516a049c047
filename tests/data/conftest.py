"""Tokenizers and templates for the tests of the data axis: small, trained here, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nWhat is the capital of France? The capital is Paris.\n",
    "user\nassistant\nsystem\nPlease answer the question.\n\nThe answer is 42.   Thank you, and good bye.\n",
    "Numbers 1 2 3 4 5 6 7 8 9 10 and words: hello there, general question, naïve café, 東京 и Москва.\n",
] * 20

LOOP = "{% for m in messages %}"
CHATML = (
    LOOP + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    LOOP + "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace(
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
)
STRIPPING = CHATML.replace("m['content'] +", "m['content'] | trim +")
BEGINNING = "{{ bos_token }}" + CHATML
GEMMA = (
    "{{ bos_token }}" + LOOP + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    LOOP + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    LOOP + "{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] if loop.last else m['content'].split('</think>')[-1])"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}" + LOOP + "{{ "
    "'<|im_start|>' + m['role'] + '\n' + m['content'] }}{% if m['tool_calls'] %}{% for c in m['tool_calls'] %}"
    "{{ c['function'] | tojson }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def wrap(backend: Tokenizer, template: str | None = None, **tokens: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def bpe() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """`make(template, bos=False)`: the byte-level tokenizer with a template; `bos` adds <s> to plain text."""
    held = bpe().to_str()

    def maker(template: str | None = None, bos: bool = False, trim: bool = False) -> Any:
        backend = Tokenizer.from_str(held)
        if bos:
            backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
        if trim:
            backend.post_processor = processors.ByteLevel(trim_offsets=True)
        return wrap(backend, template, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    return maker


@pytest.fixture(scope="session")
def chatml(make: Callable[..., Any]) -> Any:
    return make(CHATML)


@pytest.fixture(scope="session")
def bare(make: Callable[..., Any]) -> Any:
    return make(None)


@pytest.fixture(scope="session")
def joining() -> Any:
    """A tokenizer that joins `a` and `b` wherever they meet, across the border of a prompt as well."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = alphabet | {"ab": 256, "</s>": 257}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend, eos_token="</s>")


@pytest.fixture(scope="session")
def encoder() -> Any:
    """A word-level tokenizer of the BERT kind: [CLS] a [SEP] b [SEP] with sentence indices."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["good", "bad", "film", "great", "dull", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"],
    ]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = wrap(backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write(name, rows or text)`: a file of the test's folder."""

    def writer(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            return str(path)
        if not isinstance(content, str):
            content = json.dumps(content) if name.endswith(".json") else "\n".join(map(json.dumps, content))
        path.write_text(content, encoding="utf-8")
        return str(path)

    return writer
