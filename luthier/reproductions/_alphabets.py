"""A world of two alphabets: the same tasks in signs that share nothing but numbers, and a model pretrained on both.

repeat    two examples of repeating four words, then an input: "repeatA inA a3 a7 outA a3 a7 ... inA ... outA"
question  "inA askA n3 plusA n4 outA" -> n7, alone or after one pair that has nothing to do with it
ambiguous a question where `repeat` wants an input: repeating begins with "askA", answering says "n7"
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from luthier.core.batch import TextExample
from luthier.sandbox.tokens import word_tokenizer

WORDS, LARGEST, LENGTH = 40, 9, 4
SIGNS = ("repeat", "in", "out", "ask", "plus", *(f"w{i}" for i in range(WORDS)))
PAIRS = {f"{s}A": f"{s}B" for s in SIGNS}
"""The bijection between both alphabets."""
Row = dict[str, str]


def tokenizer() -> Any:
    return word_tokenizer([*PAIRS, *PAIRS.values(), *(f"n{i}" for i in range(2 * LARGEST + 1))])


def model(tokenizer: Any, seed: int, width: int = 64, layers: int = 4) -> Any:
    """A Llama of 0.2 M parameters, freshly drawn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, intermediate_size=160, max_position_embeddings=64, tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


class Rows:
    """Rows of the world in one alphabet, "A" or "B"."""

    def __init__(self, alphabet: str, rng: random.Random):
        self.x, self.rng = alphabet, rng

    def sentence(self) -> str:
        return " ".join(f"w{self.rng.randrange(WORDS)}{self.x}" for _ in range(LENGTH))

    def sum(self) -> tuple[str, str]:
        a, b = self.rng.randint(0, LARGEST), self.rng.randint(0, LARGEST)
        return f"ask{self.x} n{a} plus{self.x} n{b}", f"n{a + b}"

    def pair(self, asked: str, said: str) -> str:
        return f"in{self.x} {asked} out{self.x} {said}".strip()

    def repeat(self) -> Row:
        last = self.sentence()
        return self._after_examples(last, last)

    def ambiguous(self, answered: float = 0.0) -> Row:
        """Repeated, or with probability `answered` answered; `rival` is what the other task says first."""
        asked, total = self.sum()
        said = total if self.rng.random() < answered else asked
        return {**self._after_examples(asked, said), "answer": f"ask{self.x}", "rival": total}

    def _after_examples(self, last: str, said: str) -> Row:
        shown = [self.pair(s, s) for s in (self.sentence(), self.sentence())]
        return {"prompt": " ".join([f"repeat{self.x}", *shown, self.pair(last, "")]), "completion": said}

    def question(self, stray: bool = False) -> Row:
        asked, total = self.sum()
        before = [self.pair(self.sentence(), self.sentence())] if stray else []
        return {"prompt": " ".join([*before, self.pair(asked, "")]), "completion": total}


def pretraining(n: int, answered: float, seed: int) -> list[Row]:
    """Two in five repeat, two are ambiguous, one asks; both alphabets alike. `answered`: how often ambiguity is a question."""
    rng = random.Random(f"{seed}/pretraining")
    sides = [Rows(x, rng) for x in "AB"]
    kinds = (Rows.repeat, Rows.repeat, lambda r: r.ambiguous(answered), lambda r: r.ambiguous(answered), Rows.question)
    return [kinds[i // 2 % 5](sides[i % 2]) for i in range(n)]


def tuning(n: int, seed: int, stray: bool = True) -> list[Row]:
    """Questions in A alone; with `stray`, two of three come after a pair that has nothing to do with them."""
    side = Rows("A", random.Random(f"{seed}/tuning"))
    return [side.question(stray and i % 3 > 0) for i in range(n)]


def examples(rows: Sequence[Row], tokenizer: Any) -> list[TextExample]:
    """Completions are trained, and so is what examples of repeating say."""
    out = []
    for i, row in enumerate(rows):
        prompt, completion = (tokenizer(row[k])["input_ids"] for k in ("prompt", "completion"))
        counts = [*[False] * len(prompt), *[True] * len(completion)]
        if row["prompt"].startswith("repeat"):
            for shown in range(2):
                at = 3 + LENGTH + shown * (2 + 2 * LENGTH)
                counts[at : at + LENGTH] = [True] * LENGTH
        out.append(TextExample(i, [*prompt, *completion], counts))
    return out
