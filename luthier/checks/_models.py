"""Tiny random models by architecture, and tiny data for them. Built once in milliseconds, handed out as copies.

Weights are larger than at a usual start and norms and biases are not ones and zeros, so that attention looks
somewhere, logits differ, and a forgotten bias shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from luthier.core.batch import (
    IGNORED,
    Batch,
    GroupExample,
    LabelledExample,
    SearchExample,
    SourceTargetExample,
    TaggedExample,
    TextExample,
    collate_groups,
    collate_labelled,
    collate_packed,
    collate_source_target,
    collate_tagged,
    collate_text,
)
from luthier.core.logprobs import Scorer
from luthier.core.method import HEADED, Loss, Objective

VOCABULARY, WIDTH, LAYERS, HEADS, WINDOW, CLASSES = 96, 32, 2, 4, 64, 3
PAD, MASK, FIRST_WORD = 0, 1, 5


# -------------------------------------------------------------------------------------------------- models


def _common(**more: Any) -> dict[str, Any]:
    return {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, **more}


def _llama_like(**more: Any) -> dict[str, Any]:
    return _common(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=WINDOW, initializer_range=0.2, **more,
    )  # fmt: skip


def _bert_like(**more: Any) -> dict[str, Any]:
    return _common(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=48,
        max_position_embeddings=WINDOW, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2, **more,
    )  # fmt: skip


def _gpt2_like(**more: Any) -> dict[str, Any]:
    return _common(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=WINDOW, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, initializer_range=0.2, **more,
    )  # fmt: skip


def _t5_like(**more: Any) -> dict[str, Any]:
    return _common(
        d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0,
        decoder_start_token_id=PAD, **more,
    )  # fmt: skip


def _neox_like() -> dict[str, Any]:
    return _common(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=WINDOW, initializer_range=0.2,
    )  # fmt: skip


def _opt_like() -> dict[str, Any]:
    return _common(
        hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS, dropout=0.0,
        max_position_embeddings=WINDOW, word_embed_proj_dim=WIDTH, init_std=0.2,
    )  # fmt: skip


def _distilbert_like() -> dict[str, Any]:
    return _common(
        dim=WIDTH, hidden_dim=48, n_layers=LAYERS, n_heads=HEADS, dropout=0.0, attention_dropout=0.0,
        max_position_embeddings=WINDOW, initializer_range=0.2,
    )  # fmt: skip


ARCHITECTURES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "causal_lm", "decoder", _llama_like()),
    "gpt2": ("GPT2LMHeadModel", "causal_lm", "decoder", _gpt2_like()),
    "bert": ("BertForMaskedLM", "masked_lm", "encoder", _bert_like()),
    "bert-classifier": ("BertForSequenceClassification", "classification", "encoder", _bert_like(num_labels=CLASSES)),
    "t5": ("T5ForConditionalGeneration", "seq2seq_lm", "encoder-decoder", _t5_like()),
}
"""Name: (transformers class, task, kind, settings). Every tuner meets these, as far as it claims their kind."""

MORE_ARCHITECTURES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "opt": ("OPTForCausalLM", "causal_lm", "decoder", _opt_like()),
    "phi3": ("Phi3ForCausalLM", "causal_lm", "decoder", _llama_like()),
    "gpt_neox": ("GPTNeoXForCausalLM", "causal_lm", "decoder", _neox_like()),
    "gemma2": ("Gemma2ForCausalLM", "causal_lm", "decoder", _llama_like(
        head_dim=8, final_logit_softcapping=3.0, layer_types=["full_attention"] * LAYERS,
    )),
    "qwen2": ("Qwen2ForCausalLM", "causal_lm", "decoder", _llama_like()),
    "qwen3": ("Qwen3ForCausalLM", "causal_lm", "decoder", _llama_like(head_dim=8)),
    "olmo2": ("Olmo2ForCausalLM", "causal_lm", "decoder", _llama_like()),
    "mistral": ("MistralForCausalLM", "causal_lm", "decoder", _llama_like(sliding_window=None)),
    "granite": ("GraniteForCausalLM", "causal_lm", "decoder", _llama_like(logits_scaling=2.0)),
    "distilbert": ("DistilBertForMaskedLM", "masked_lm", "encoder", _distilbert_like()),
    "roberta": ("RobertaForMaskedLM", "masked_lm", "encoder", _bert_like()),
    "t5-gated": (
        "T5ForConditionalGeneration", "seq2seq_lm", "encoder-decoder", _t5_like(feed_forward_proj="gated-gelu"),
    ),
    "bert-embedding": ("BertModel", "embedding", "encoder", _bert_like()),
    "llama-embedding": ("LlamaModel", "embedding", "decoder", _llama_like()),
    "bert-tagger": ("BertForTokenClassification", "token_classification", "encoder", _bert_like(num_labels=CLASSES)),
    "llama-tagger": ("LlamaForTokenClassification", "token_classification", "decoder", _llama_like(
        num_labels=CLASSES, classifier_dropout=0.0,
    )),
    "llama-classifier": ("LlamaForSequenceClassification", "classification", "decoder", _llama_like(num_labels=CLASSES)),
}  # fmt: skip
"""Further layouts, for the anatomy's and the core's own tests."""


@cache
def _built(name: str, changes: tuple[tuple[str, Any], ...]) -> transformers.PreTrainedModel:
    class_name, _, _, settings = (ARCHITECTURES | MORE_ARCHITECTURES)[name]
    cls = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = cls.config_class(**{**settings, **dict(changes)})
        model = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def model_of(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A fresh copy of the tiny model of an architecture, in evaluation mode. `changes` are config settings."""
    return copy.deepcopy(_built(name, tuple(sorted(changes.items()))))


# ---------------------------------------------------------------------------------------------------- data


def _words(rng: np.random.Generator, n: int) -> list[int]:
    return rng.integers(FIRST_WORD, VOCABULARY, n).tolist()


@cache
def texts(n: int = 6, seed: int = 1) -> tuple[TextExample, ...]:
    """Sequences of different lengths; the first tokens of each do not count, nor does the last of every second one."""
    rng = np.random.default_rng(seed)
    out = []
    for row in range(n):
        prompt, answer = int(rng.integers(2, 6)), int(rng.integers(3, 7))
        counts = [False] * prompt + [True] * answer
        counts[-1] = row % 2 == 0
        out.append(TextExample(row, _words(rng, prompt + answer), counts))
    return tuple(out)


@cache
def groups(n: int = 4, answers: int = 2, seed: int = 2) -> tuple[GroupExample, ...]:
    """Pairs, or groups of one to `answers` answers, best first, some of them with the same score."""
    rng = np.random.default_rng(seed)
    out = []
    for row in range(n):
        K = answers if answers <= 2 else 1 + (answers - 1 + row) % answers
        prompt = _words(rng, int(rng.integers(2, 6)))
        told = [_words(rng, int(rng.integers(2, 6))) for _ in range(K)]
        scores = [float(K - k) if answers <= 2 else float((K - k) // 2) for k in range(K)]
        out.append(GroupExample(row, prompt, told, scores))
    return tuple(out)


@cache
def answered(n: int = 6, answers: int = 3, seed: int = 6) -> tuple[GroupExample, ...]:
    """Prompts with two to `answers` answers that a model wrote: rewards, and what it and another one said of each token."""
    rng = np.random.default_rng(seed)
    model, out = model_of("llama"), []
    for row in range(n):
        prompt = _words(rng, int(rng.integers(2, 6)))
        told = [_words(rng, int(rng.integers(2, 5))) for _ in range(2 + row % (answers - 1))]
        said = []
        for answer in told:
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            said.append(logp[torch.arange(len(answer)) + len(prompt) - 1, torch.tensor(answer)])
        logp = torch.cat(said)
        noise = [torch.tensor(rng.normal(size=len(logp)), dtype=torch.float32) for _ in range(3)]
        columns = {"old": logp + 0.2 * noise[0], "ref": logp + 0.4 * noise[1], "value": noise[2]}
        scores = [round(float(s), 3) for s in rng.normal(size=len(told))]
        out.append(GroupExample(row, prompt, told, scores, extras=columns))
    return tuple(out)


@cache
def wordings(n: int = 4, answers: int = 2, seed: int = 5) -> tuple[GroupExample, ...]:
    """Groups whose answers are the same after beginnings that differ and do not count."""
    rng = np.random.default_rng(seed)
    out = []
    for row in range(n):
        prompt, answer = _words(rng, int(rng.integers(1, 4))), _words(rng, int(rng.integers(2, 6)))
        before = [_words(rng, int(rng.integers(1, 4))) for _ in range(answers)]
        out.append(GroupExample(row, prompt, [b + answer for b in before], given=[len(b) for b in before]))
    return tuple(out)


@cache
def labelled(problem: str = "single_label_classification", n: int = 6, seed: int = 3) -> tuple[LabelledExample, ...]:
    rng = np.random.default_rng(seed)
    labels: dict[str, Callable[[], int | float | list[float]]] = {
        "single_label_classification": lambda: int(rng.integers(CLASSES)),
        "multi_label_classification": lambda: [float(b) for b in rng.integers(0, 2, CLASSES)],
        "regression": lambda: float(rng.normal()),
    }
    label = labels[problem]
    return tuple(LabelledExample(row, _words(rng, int(rng.integers(3, 9))), label()) for row in range(n))


@cache
def tagged(n: int = 6, seed: int = 7) -> tuple[TaggedExample, ...]:
    """A class for some of the tokens of each, the first of one and the last of another among them."""
    rng = np.random.default_rng(seed)
    out = []
    for row in range(n):
        ids = _words(rng, int(rng.integers(3, 9)))
        tags = [int(rng.integers(CLASSES)) if rng.random() < 0.6 else IGNORED for _ in ids]
        tags[-1 if row % 2 else 0] = int(rng.integers(CLASSES))
        out.append(TaggedExample(row, ids, tags))
    return tuple(out)


@cache
def sources_targets(n: int = 6, seed: int = 4) -> tuple[SourceTargetExample, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        SourceTargetExample(row, _words(rng, int(rng.integers(3, 8))), _words(rng, int(rng.integers(3, 6))))
        for row in range(n)
    )


@cache
def searches(paired: bool = False, n: int = 6, seed: int = 5) -> tuple[SearchExample, ...]:
    """Two to four documents a query. Some are the same text: that of a right document under another query, of a query
    asked twice, and of one negative of two queries."""
    rng = np.random.default_rng(seed)
    documents = [_words(rng, int(rng.integers(3, 9))) for _ in range(3 * n)]
    queries = [_words(rng, int(rng.integers(2, 6))) for _ in range(n)]
    queries[1] = queries[0]
    out = []
    for row, query in enumerate(queries):
        own = [3 * row, 3 * row + 1, *([3 * row + 2] if row % 2 else [])]
        own += {0: [], 1: [7], 2: [9], 3: [7], 4: [], 5: []}[row % 6]
        sequences = [[*query, *documents[k]] for k in own] if paired else [documents[k] for k in own]
        out.append(SearchExample(row, [] if paired else query, sequences, own, hash(tuple(query)) >> 1))
    return tuple(out)


# ------------------------------------------------------------------------------------------------ the world


@dataclass(frozen=True)
class Likelihood(Objective):
    """The objective of the checks themselves, so that a tuner is judged by nothing but the core."""

    paper: ClassVar[str] = ""
    task: str = "causal_lm"  # type: ignore[misc]

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        return hidden(batch) if self.task == "masked_lm" else batch

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows) if self.task == "classification" else len(batch.target))  # type: ignore[arg-type]

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        if self.task == "classification":
            assert batch.label is not None
            return Loss(F.cross_entropy(scorer.class_logits(batch), batch.label, reduction="sum"), self.weight(batch))
        if self.task == "token_classification":
            assert batch.target is not None
            return Loss(F.cross_entropy(scorer.tag_logits(batch), batch.target, reduction="sum"), self.weight(batch))
        return Loss(-scorer.token_logp(batch).sum(), self.weight(batch))


def hidden(batch: Batch) -> Batch:
    """Scored tokens behind the mask token, predicted at their own place."""
    assert batch.source is not None
    at = batch.source + 1
    ids = batch.ids.flatten().clone()
    ids[at] = MASK
    return replace(batch, ids=ids.view_as(batch.ids), source=at)


@dataclass(frozen=True)
class World:
    """One architecture with data that fits it."""

    architecture: str
    task: str
    kind: str

    @property
    def label(self) -> str:
        return self.architecture

    def base(self, **changes: Any) -> transformers.PreTrainedModel:
        return model_of(self.architecture, **changes)

    @property
    def examples(self) -> tuple[Any, ...]:
        return {"classification": labelled, "token_classification": tagged, "seq2seq_lm": sources_targets}.get(
            self.task, texts
        )()

    @property
    def lessons(self) -> list[Any]:
        """Four examples with one token, or one label, to learn."""
        first = list(self.examples[:4])
        if self.task == "seq2seq_lm":
            return [replace(e, target=e.target[:1]) for e in first]
        if self.task in HEADED:
            return first
        return [replace(e, counts=[t == len(e) - 1 for t in range(len(e))]) for e in first]

    @property
    def objective(self) -> Likelihood:
        return Likelihood(self.task)

    def batch(self, examples: Sequence[Any] | None = None, side: str = "right") -> Batch:
        """One example a row."""
        rows = list(self.examples if examples is None else examples)
        if self.task == "classification":
            return collate_labelled(rows, PAD, side)
        if self.task == "token_classification":
            return collate_tagged(rows, PAD, side)
        if self.task == "seq2seq_lm":
            return collate_source_target(rows, PAD, PAD, side)
        batch = collate_text(rows, PAD, side)
        return hidden(batch) if self.task == "masked_lm" else batch

    def packed(self) -> Batch:
        """Two examples a row."""
        rows = list(self.examples)
        return collate_packed([rows[i : i + 2] for i in range(0, len(rows), 2)], PAD)

    def tree(self, share: bool) -> Batch:
        return collate_groups(groups(), PAD, share_prompt=share)

    def answers(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at the scored positions (N, V), or those of a task head (B, C), with gradient."""
        dtype = next(model.parameters()).dtype
        logits = model(**batch.inputs(dtype)).logits
        if self.task == "classification":
            return logits
        assert batch.source is not None
        return logits.flatten(0, 1).index_select(0, batch.source.to(logits.device))

    @torch.no_grad()
    def said(self, model: nn.Module, batch: Batch | None = None) -> Tensor:
        """`answers` in evaluation mode, without gradient."""
        was = [m for m in model.modules() if m.training]
        model.eval()
        try:
            return self.answers(model, self.batch() if batch is None else batch)
        finally:
            for module in was:
                module.training = True

    def loss(self, model: nn.Module, batch: Batch | None = None) -> Tensor:
        """Mean loss, with gradient, in the mode that the model is in."""
        loss = self.objective.compute(Scorer(model), self.batch() if batch is None else batch)
        return loss.sum / loss.weight

    def train(
        self, model: nn.Module, steps: int, lr: float = 0.03, weight_decay: float = 0.1,
        batch: Batch | None = None, until: float = 0.0,
    ) -> list[float]:  # fmt: skip
        """A few plain optimiser steps; the loss before each. Over as soon as it is below `until` of the first."""
        losses, batch = [], self.batch() if batch is None else batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.train()
            moving = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=weight_decay)
            for _ in range(steps):
                loss = self.loss(model, batch)
                losses.append(float(loss.detach()))
                if losses[-1] < until * losses[0]:
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
        return losses


WORLDS = tuple(World(name, task, kind) for name, (_, task, kind, _) in ARCHITECTURES.items())
