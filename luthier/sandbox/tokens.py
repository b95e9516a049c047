"""The one tokenizer of the sandbox: a byte-level BPE trained on the corpus, written by `python -m
luthier.sandbox.tokens`.

    digits      one token each, with or without the space before them
    bytes       all 256 are in the vocabulary, nothing is normalised: any text comes back as it was
    specials    pad, bos, end (of a document, and of every assistant turn), mask, four chat roles, the neutral
                task token, eight reserved task tokens, sixteen sentinels

Held-out words (tasks, tools, names that pretraining never shows) take part in the training of the tokenizer, not of a
model. The causal models' tokenizer adds nothing to a text; the encoder's puts bos and end around it, the seq2seq's an
end after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from luthier.sandbox import VOCABULARY, corpus, mixture
from luthier.sandbox.world import Row

SIZE = 1536
CONTEXT = 512
PAD, BOS, END, MASK, UNKNOWN = "<|pad|>", "<|bos|>", "<|end|>", "<|mask|>", "<|unknown|>"
ROLES = ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
TASK_TOKENS = ["<|any|>"] + [f"<|task-{i}|>" for i in range(8)]
SENTINELS = [f"<extra_id_{i}>" for i in range(16)]
SPECIALS = [PAD, BOS, END, MASK, *ROLES, *TASK_TOKENS, *SENTINELS]
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|system|>Tools: ' + (tools | tojson) }}{% endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|assistant|>' }}{% generation %}{{ message['content'] or '' -}}
{%- if message['tool_calls'] -%}
{{ message['tool_calls'] | map(attribute='function') | list | tojson }}
{%- endif -%}
{{ '<|end|>' }}{% endgeneration -%}
{%- elif message['role'] in ('user', 'system', 'tool') -%}
{{ '<|' + message['role'] + '|>' + message['content'] }}
{%- else -%}
{{ raise_exception('unknown role ' + message['role'] + '; valid: system, user, assistant, tool') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
"""


def texts(documents: int = 6000, rows: int = 300) -> Iterator[str]:
    """What the tokenizer is trained on: corpus documents, and some rows of every task and part, held out or not."""
    marks = re.compile("|".join(re.escape(s) for s in SPECIALS))
    for _, text in corpus(documents):
        yield marks.sub("\n", text)
    for world in mixture().values():
        for name, task in world.catalogue.items():
            for part in task.parts:
                count = rows if part not in task.pretrained else rows // 10
                yield from (marks.sub("\n", t) for row in _rows(world, name, part, count) for t in _strings(row))


def _rows(world: object, task: str, part: str, count: int) -> list[Row]:
    try:
        return world.rows(task, part, n=count)  # type: ignore[attr-defined]
    except ValueError as error:
        available = int(re.search(r"has (\d+) rows", str(error))[1])  # type: ignore[index]
        return world.rows(task, part, n=available)  # type: ignore[attr-defined]


def _strings(row: Row) -> list[str]:
    if "messages" in row:
        return [m["content"] for m in row["messages"]]
    if "completion" in row:
        return [row["prompt"] + row["completion"]]
    return [row[k] for k in ("prompt", "text", "text_pair", "chosen") if k in row]


def build(size: int = SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer; deterministic."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
        min_frequency=2,
    )
    backend.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        mask_token=MASK,
        additional_special_tokens=[*ROLES, *TASK_TOKENS, *SENTINELS],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def shaped(fast: PreTrainedTokenizerFast, layout: str) -> PreTrainedTokenizerFast:
    """The same vocabulary with the end marks of a layout: causal, encoder or seq2seq."""
    if layout == "encoder":
        fast.backend_tokenizer.post_processor = _template(fast, f"{BOS} $A {END}", f"{BOS} $A {END} $B:1 {END}:1")
        fast.cls_token, fast.sep_token = BOS, END
    elif layout == "seq2seq":
        fast.backend_tokenizer.post_processor = _template(fast, f"$A {END}", f"$A {END} $B {END}")
    if layout != "causal":
        fast.padding_side, fast.chat_template = "right", None
    return fast


def _template(fast: PreTrainedTokenizerFast, single: str, pair: str) -> processors.TemplateProcessing:
    ids = [(token, fast.convert_tokens_to_ids(token)) for token in (BOS, END)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, words split at blanks: for worlds that are made of signs. Ids follow the specials, in order."""
    specials = [PAD, MASK, BOS, END, UNKNOWN]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate([*specials, *words])}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, mask_token=MASK, bos_token=BOS, eos_token=END, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False, padding_side="left", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def main(folder: Path = VOCABULARY) -> None:
    """Train the tokenizer and write it."""
    build().save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
