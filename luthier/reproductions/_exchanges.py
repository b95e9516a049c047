"""Card 31's world: a base model that holds the map from instructions to answers, and never stops.

A document is nine exchanges "mark mark task symbol symbol symbol mark mark answer", its two pairs of marks drawn anew for each
document, so that any pair is understood; the pair of the chat template never occurs. One document in ten is a single exchange
with an end token instead. 0.15 of all documents are filler text with a pattern. Six tasks on three symbols out of ten.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.core.batch import TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.method import Decoder
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.decoding.rules import Rules
from luthier.evaluation._family import items_of
from luthier.evaluation.stopping import Stopping
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Experiment
from luthier.tuners.full import Full

PAD, END = "<pad>", "<end>"
SYMBOLS = [str(i) for i in range(10)]
MARKS = [*"!?:;()[]{}<>"]
FILLER = [f"w{i}" for i in range(20)]
OPENING, ANSWERING = "( [", "] )"
"""The pair of marks of the chat template."""
TASKS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda s: s, "reverse": lambda s: s[::-1], "first": lambda s: s[:1], "last": lambda s: s[-1:],
    "extend": lambda s: s + s[:1], "sort": sorted,
}  # fmt: skip
WORDS = [PAD, END, *SYMBOLS, *TASKS, *MARKS, *FILLER]
LENGTH, EXCHANGES = 48, 9
LIMIT = 10
"""Tokens that an answer may have before it is cut off; the longest right one has four and the end."""


@cache
def vocabulary() -> Any:
    """One token a word, and the chat template in the pair of marks that pretraining never shows."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)
    made.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '" + ANSWERING + " ' }}{% generation %}"
        "{{ m['content'] + ' ' + eos_token }}{% endgeneration %}{% else %}{{ '" + OPENING + " ' + m['content'] + ' ' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '" + ANSWERING + " ' }}{% endif %}"
    )
    return made


def conversations(n: int, rng: random.Random, tasks: Sequence[str] = tuple(TASKS)) -> list[dict[str, Any]]:
    """Different rows of one instruction and its answer, the tasks in turn."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    while len(found) < n:
        task, symbols = tasks[len(found) % len(tasks)], rng.choices(SYMBOLS, k=3)
        asked, answer = " ".join([task, *symbols]), " ".join(TASKS[task](symbols))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        found.setdefault((task, *symbols), {"id": asked, "task": task, "messages": turns})
    return list(found.values())


def document(row: int, rng: random.Random) -> TextExample:
    """Trained is what can be known: not the task and its symbols, and marks from their second time on."""
    ids = {word: i for i, word in enumerate(WORDS)}
    if rng.random() < 0.15:
        start, step = rng.randrange(len(FILLER)), rng.choice([1, 3, 7, 9])
        words = [FILLER[(start + step * i) % len(FILLER)] for i in range(LENGTH)]
        return TextExample(row, [ids[w] for w in words], [True] * LENGTH)
    opening, answering = rng.choices(MARKS, k=2), rng.choices(MARKS, k=2)
    while opening == answering or opening == OPENING.split() or answering == ANSWERING.split():
        opening, answering = rng.choices(MARKS, k=2), rng.choices(MARKS, k=2)
    alone = rng.random() < 0.1
    words, counts = [], []
    for exchange in range(1 if alone else EXCHANGES):
        task, symbols = rng.choice(list(TASKS)), rng.choices(SYMBOLS, k=3)
        answer, known = TASKS[task](symbols), exchange > 0
        words += [*opening, task, *symbols, *answering, *answer]
        counts += [known, known, False, False, False, False, known, known, *[True] * len(answer)]
    if alone:
        words, counts = [*words, END], [*counts, True]
    return TextExample(row, [ids[w] for w in words[:LENGTH]], counts[:LENGTH])


@dataclass(frozen=True)
class Pretraining:
    """A model from random weights on documents.

    early  the last checkpoint whose answers begin right in less than this share is kept as a base pretrained too little
    """

    steps: int
    rate: float
    early: float
    batch: int = 32
    width: int = 128
    layers: int = 3
    every: int = 25
    rows: int = 180

    def run(self, seed: int) -> tuple[Any, Any]:
        """The base and the early one."""
        rng = random.Random(f"{seed}/documents")
        documents = [document(i, rng) for i in range(self.steps * self.batch)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, early = self._model(), self._model()
        knows = _Knows(conversations(self.rows, random.Random(f"{seed}/known")), self, early)
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.rate, warmup_ratio=0.1,
            adam_beta2=0.98, weight_decay=0.01, logging_steps=10_000,
        )  # fmt: skip
        tuner, pad = Full(), vocabulary().pad_token_id
        loop = Loop(
            tuner.wrap(model, "causal_lm", seed), tuner, SFT(), documents, settings, pad, seed, callbacks=[knows]
        )
        loop.fit()
        return model.eval(), early.eval()

    def _model(self) -> Any:
        tokenizer = vocabulary()
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS), hidden_size=self.width, intermediate_size=5 * self.width // 2,
                num_hidden_layers=self.layers, num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip


class _Knows(LoopCallback):
    """Keeps the last checkpoint that knows little."""

    def __init__(self, rows: list[dict[str, Any]], plan: Pretraining, early: Any):
        self.rows, self.plan, self.early = rows, plan, early

    def step(self, loop: Loop) -> None:
        if loop.step_index % self.plan.every:
            return
        if answered(loop.plain, self.rows)["prefix"] < self.plan.early:
            self.early.load_state_dict(loop.plain.state_dict())


def subject(model: Any, decoder: Decoder | None = None) -> Subject:
    return Subject(model, vocabulary(), decoder=decoder or Greedy())


def answered(model: Any, rows: list[dict[str, Any]], decoder: Decoder | None = None) -> dict[str, float]:
    """Shares of answers to instructions that are right and end, that end, and that begin with what is right."""
    found = Stopping(max_new_tokens=LIMIT).ask(subject(model, decoder), items_of(rows)).stats
    return {metric: float(found[metric].mean()) for metric in Stopping.metrics}


class Exchanges(Experiment):
    """What the experiments on this world have in common: the base, the one pretrained too little, and the rules."""

    scope: ClassVar[str] = "this world and size"
    pretraining_steps: ClassVar[int] = 700
    pretraining_rate: ClassVar[float] = 3e-3
    early: ClassVar[float] = 0.3
    test_rows: ClassVar[int] = 360
    strength: ClassVar[float] = 15.0
    length: ClassVar[int] = 8
    change: ClassVar[float] = -4.0
    diversity: ClassVar[float] = 1.5

    def bases(self, seed: int) -> tuple[Any, Any]:
        """The base, and the one pretrained too little."""
        return Pretraining(self.pretraining_steps, self.pretraining_rate, self.early).run(seed)

    def tables(self) -> dict[str, Rules]:
        """The pull towards the end, with marks discouraged, with all rules; and marks discouraged without the pull."""
        end: dict[str, Any] = {"strength": self.strength, "length": self.length}
        marks = dict.fromkeys(MARKS, self.change)
        return {
            "end": Rules(**end, changes={}, diversity=0.0), "end_changes": Rules(**end, changes=marks, diversity=0.0),
            "all_rules": Rules(**end, changes=marks, diversity=self.diversity),
            "changes": Rules(strength=0.0, changes=marks, diversity=0.0),
        }  # fmt: skip
