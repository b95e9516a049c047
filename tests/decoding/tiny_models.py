"""Tiny random models and a tiny tokenizer, built here: nothing is loaded from anywhere."""

from __future__ import annotations

import string
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

torch.set_num_threads(1)  # these models are so small that a second thread only waits
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<cls>", "<sep>"]
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PAIRS = ["th", "he", "in", "an", "er", "on", "##", "12", "ab", "cd"]


@cache
def tokenizer(kind: str = "causal") -> PreTrainedTokenizerFast:
    """Characters and a few pairs of them; "bos" puts BOS in front, "masked" adds CLS and SEP, "seq2seq" EOS."""
    alphabet = [c for c in string.printable if c not in "\r\x0b\x0c\t"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = [byte_level.pre_tokenize_str(c)[0][0] for c in alphabet]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*SPECIAL, *symbols, *PAIRS]))}
    backend = Tokenizer(models.BPE(vocab, [(p[0], p[1]) for p in PAIRS], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    kinds = {"causal": None, "bos": "<bos> $A", "seq2seq": "$A <eos>", "masked": "<cls> $A <sep>"}
    if kinds[kind]:
        from tokenizers.processors import TemplateProcessing

        special = [(t, vocab[t]) for t in kinds[kind].split() if t in vocab]
        pair = "<cls> $A <sep> $B <sep>" if kind == "masked" else f"{kinds[kind]} $B"
        backend.post_processor = TemplateProcessing(single=kinds[kind], pair=pair, special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if kind == "bos":
        names["bos_token"] = "<bos>"
    if kind == "masked":
        names |= {"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"}
    found = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    found.chat_template = CHAT
    return found


VOCABULARY = 128


def _sharp(model: torch.nn.Module, body: float = 3.0, table: float = 8.0) -> torch.nn.Module:
    """Larger weights, so that distributions are far from uniform and argmax has no near ties."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.mul_(table if any(n in name for n in ("embed", "wte", "shared")) else body)
    return model.eval()


@cache
def llama(seed: int = 0, window: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=window, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return _sharp(LlamaForCausalLM(config))


@cache
def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return _sharp(GPT2LMHeadModel(config), body=12.0, table=4.0)


@cache
def t5(seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return _sharp(T5ForConditionalGeneration(config), body=2.0, table=0.4)


def bert_config(labels: int = 2) -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0, num_labels=labels,
    )  # fmt: skip


@cache
def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    return _sharp(BertForMaskedLM(bert_config()))


@cache
def bert_classifier(labels: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return _sharp(BertForSequenceClassification(bert_config(labels)))
