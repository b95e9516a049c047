"""What every contender is given: a random Llama of 15 million parameters, rows with the lengths of GSM8K, random ids.

Lengths come from GSM8K itself where LUTHIER_DATA names a folder that holds `gsm8k/train.jsonl`, counted by a plain
rule (a word, a digit and a mark are one token each, as a 32k vocabulary nearly does); elsewhere from a table of 64
(prompt, answer) pairs that are the quantiles of the same 7,473 rows. Speed depends on lengths, not on words, so ids
are random. The answer is trained on, the prompt is not.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, SMALL_VOCABULARY = 32_000, 4_000
PAD, END, FIRST = 0, 1, 2
"""Ids: padding, end of an answer, and the first ordinary token."""

QUANTILES = (
    (32, 47), (31, 54), (35, 55), (39, 56), (34, 65), (49, 53), (43, 62), (40, 68), (49, 62), (42, 71), (58, 57),
    (27, 91), (37, 83), (40, 83), (40, 85), (37, 90), (32, 97), (45, 87), (38, 95), (44, 92), (50, 88), (57, 83),
    (46, 97), (30, 115), (50, 98), (49, 101), (53, 99), (33, 121), (54, 102), (49, 110), (49, 112), (59, 105),
    (42, 124), (44, 124), (55, 116), (73, 101), (78, 99), (35, 145), (56, 127), (43, 143), (50, 139), (59, 133),
    (47, 148), (54, 144), (37, 165), (63, 142), (63, 146), (76, 135), (61, 154), (45, 174), (52, 172), (78, 150),
    (62, 171), (64, 175), (61, 183), (63, 188), (61, 198), (40, 227), (59, 216), (83, 204), (80, 221), (77, 240),
    (88, 250), (112, 281),
)  # fmt: skip
"""(prompt, answer) tokens of GSM8K's training rows at 64 evenly spaced quantiles of their sum."""


@dataclass(frozen=True)
class Row:
    """Prompt and answer ids; for a pair also the rejected answer. Answers end with END."""

    prompt: list[int]
    answer: list[int]
    rejected: list[int] | None = None


def gsm8k_lengths() -> tuple[list[tuple[int, int]], str]:
    """(prompt, answer) tokens of every row, and where they come from."""
    folder = os.environ.get("LUTHIER_DATA")
    file = Path(folder) / "gsm8k" / "train.jsonl" if folder else None
    if file is None or not file.exists():
        return list(QUANTILES), "64 quantiles of GSM8K"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(_tokens(r["question"]), _tokens(r["answer"]) + 1) for r in rows], f"GSM8K, {len(rows)} rows"


def _tokens(text: str) -> int:
    return len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", text))


def rows(n: int, pairs: bool = False, small: bool = False, seed: int = 0) -> list[Row]:
    """`n` rows drawn with the lengths of GSM8K. A rejected answer has 0.7 to 1.3 times the length of the chosen one."""
    rng = np.random.default_rng(seed)
    lengths, _ = gsm8k_lengths()
    top, out = vocabulary(small), []
    for i in rng.choice(len(lengths), size=n, replace=n > len(lengths)):
        prompt, answer = lengths[i]
        rejected = _answer(rng, top, max(2, round(answer * rng.uniform(0.7, 1.3)))) if pairs else None
        out.append(Row(_ids(rng, top, prompt), _answer(rng, top, answer), rejected))
    return out


def _ids(rng: np.random.Generator, top: int, n: int) -> list[int]:
    return rng.integers(FIRST, top, size=n).tolist()


def _answer(rng: np.random.Generator, top: int, n: int) -> list[int]:
    return [*_ids(rng, top, n - 1), END]


def vocabulary(small: bool) -> int:
    return SMALL_VOCABULARY if small else VOCABULARY


def model(small: bool = False, seed: int = 0) -> Any:
    """The shape of stories15M: 15.2 million parameters, 9.2 million of them embeddings tied to the head.

    `small` is a model of a million parameters, where a step is short and a loop's own cost shows.
    """
    return llama(*((96, 4, 4) if small else (288, 6, 6)), small, seed)


def llama(width: int, layers: int, heads: int, small: bool, seed: int) -> Any:
    """A random Llama over the vocabulary of the rows, embeddings tied to the head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary(small),
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )
    )


def text_examples(given: list[Row]) -> list[Any]:
    """luthier's form of rows for supervised tuning."""
    from luthier.core.batch import TextExample

    return [
        TextExample(i, r.prompt + r.answer, [False] * len(r.prompt) + [True] * len(r.answer))
        for i, r in enumerate(given)
    ]


def group_examples(given: list[Row]) -> list[Any]:
    """luthier's form of preference pairs."""
    from luthier.core.batch import GroupExample

    return [GroupExample(i, r.prompt, [r.answer, r.rejected or []]) for i, r in enumerate(given)]


def tokenizer(small: bool = False) -> Any:
    """A tokenizer whose words are `t<id>`: trainers that insist on text get exactly the same ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": END} | {f"t{i}": i for i in range(FIRST, vocabulary(small))}
    plain = Tokenizer(models.WordLevel(words, unk_token="t2"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", model_max_length=1024)


def words(ids: list[int]) -> str:
    """Text that `tokenizer` turns back into `ids` (END left out: trainers add it)."""
    return " ".join(f"t{i}" for i in ids if i != END)
