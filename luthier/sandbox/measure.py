"""What a nano model knows, measured with the worlds' own checkers: the `knows` part of every `card.json`.

Answers are greedy; every figure is a share of `count` rows that are scored 1.0, from the test split wherever
pretraining never showed it (procedural worlds), and from both splits for facts, styles, recipes and things, which
pretraining states.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.sandbox import corpus, mixture, world
from luthier.sandbox.world import Row, World, gold
from luthier.sandbox.worlds.languages import LANGUAGES, PIVOT
from luthier.sandbox.worlds.sequence import HELD_OUT, PRETRAINED

UNSEEN_SEED = 987_654_321  # documents of this corpus seed were in no pretraining run
STATED = {"facts", "styles", "documents", "safety"}


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerFast,
    prompts: list[str],
    max_tokens: int = 40,
    stop: str = "\n",
    batch: int = 64,
) -> list[str]:
    """Greedy completions, up to the end token or the stop string; batches of similar length, padded on the left."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids = tok(
            [prompts[i] for i in chosen],
            return_tensors="pt",
            padding=True,
            add_special_tokens=True,
            padding_side=_side(model),
        )
        for i, text in zip(chosen, _greedy(model, tok, dict(ids), max_tokens, stop), strict=True):
            head, found, _ = text.partition(stop)
            out[i] = head + found  # a row goes on until the last of its batch has stopped
    return out


def _side(model: PreTrainedModel) -> str:
    return "right" if model.config.is_encoder_decoder else "left"


def _greedy(
    model: PreTrainedModel, tok: PreTrainedTokenizerFast, inputs: dict[str, torch.Tensor], max_tokens: int, stop: str
) -> list[str]:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    run: Any = model
    if model.config.is_encoder_decoder:
        made = run.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
        return tok.batch_decode(made, skip_special_tokens=True)
    rows = ids.shape[0]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)  # (B, T)
    new, cache, texts, done = [], None, [""] * rows, [False] * rows
    for _ in range(max_tokens):
        result = run(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = result.past_key_values
        ids = result.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
        new.append(ids)
        texts = tok.batch_decode(torch.cat(new, 1), skip_special_tokens=False)
        done = [tok.eos_token in t or stop in t.lstrip("\n") for t in texts]
        if all(done):
            break
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return texts


def sample_rows(source: World, task: str, part: str, count: int) -> list[Row]:
    """Up to `count` rows to measure on; both splits where pretraining states the content anyway."""
    splits = ("train", "test") if source.name in STATED else ("test",)
    found: list[Row] = []
    for split in splits:
        share = -(-count * 4 // 5) if split == "train" else count - len(found)
        for n in (share, share // 4, 4, 1):
            try:
                found += source.rows(task, part, split, n, seed=1)
                break
            except ValueError:
                continue
    return found


def accuracy(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerFast,
    source: World,
    task: str,
    part: str,
    count: int,
    max_tokens: int = 40,
) -> float:
    """Share of rows that are answered right."""
    rows = sample_rows(source, task, part, count)
    texts = complete(model, tok, [r["prompt"] for r in rows], max_tokens, source.stop)
    return round(sum(source.score(r, t) for r, t in zip(rows, texts, strict=True)) / len(rows), 3)


def few_shot(model: PreTrainedModel, tok: PreTrainedTokenizerFast, task: str, shots: int, count: int) -> float:
    """Sequence accuracy when the task must be inferred from `shots` neutral examples."""
    source: Any = world("sequence")
    rows = source.rows(task, "neutral", "test", count, seed=2)
    prompts = [source.examples(task, shots, random.Random(i)) + r["prompt"] for i, r in enumerate(rows)]
    texts = complete(model, tok, prompts, 12)
    return round(sum(source.score(r, t) for r, t in zip(rows, texts, strict=True)) / count, 3)


def option_accuracy(model: PreTrainedModel, tok: PreTrainedTokenizerFast, task: str, count: int) -> float:
    """An encoder's accuracy at filling the answer: the labels compared by the masked token's logits."""
    source: Any = world("labels")
    rows = source.rows(task, "known", "test", count, seed=1)
    first = [tok(f" {label}", add_special_tokens=False).input_ids[0] for label in source.labels(task)]
    right = 0
    for row in rows:
        ids = tok(f"{row['prompt']}{tok.mask_token}", return_tensors="pt")
        place = (ids["input_ids"][0] == tok.mask_token_id).nonzero()[0, 0]
        with torch.no_grad():
            logits = model(**ids).logits[0, place]
        right += source.labels(task)[int(logits[first].argmax())] == row["answer"]
    return round(right / count, 3)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tok: PreTrainedTokenizerFast, count: int = 24) -> dict[str, float]:
    """Perplexity per token of unseen documents, by world (causal models)."""
    texts: dict[str, list[str]] = {name: [] for name in mixture()}
    for name, text in corpus(count * 40, UNSEEN_SEED):
        if len(texts[name]) < count:
            texts[name].append(text)
    out = {}
    for name, mine in texts.items():
        loss, weight = 0.0, 0
        for text in mine:
            ids = torch.tensor([[tok.bos_token_id, *tok(text, add_special_tokens=False).input_ids]])  # (1, T)
            loss += F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
            weight += ids.shape[1] - 1
        out[name] = round(math.exp(loss / weight), 3)
    return out


@torch.no_grad()
def masked_accuracy(model: PreTrainedModel, tok: PreTrainedTokenizerFast, count: int = 200) -> dict[str, float]:
    """An encoder's share of right tokens where one in seven is masked, by world."""
    right: dict[str, list[int]] = {name: [] for name in mixture()}
    for number, (name, text) in enumerate(corpus(count, UNSEEN_SEED)):
        ids = tok(text, return_tensors="pt", truncation=True, max_length=128)["input_ids"]
        places = list(range(1 + number % 7, ids.shape[1] - 1, 7))
        noised = ids.clone()
        noised[0, places] = tok.mask_token_id
        guess = model(input_ids=noised).logits[0].argmax(-1)
        right[name] += (guess[places] == ids[0, places]).int().tolist()
    return {name: round(sum(r) / max(1, len(r)), 3) for name, r in right.items()}


def measure(model: PreTrainedModel, tok: PreTrainedTokenizerFast, layout: str, count: int = 100) -> dict[str, Any]:
    """Everything that the card of a model states."""
    model.eval()
    if layout == "encoder":
        names = ("sentiment", "topic", "entailment", "similarity", "acceptability")
        labels = {n: option_accuracy(model, tok, n, count) for n in names}
        return {"count": count, "masked_token": masked_accuracy(model, tok), "labels": labels}

    def known(name: str, task: str, part: str = "known", rows: int = count, max_tokens: int = 40) -> float:
        return accuracy(model, tok, world(name), task, part, rows, max_tokens)

    out: dict[str, Any] = {"count": count}
    out["facts"] = {
        f"{t}_{p}": known("facts", t, p, 4 * count)
        for t in ("verbatim", "rephrased", "derived")
        for p in ("known", "rare", "new")
    }
    out["sequence"] = {t: known("sequence", t, "named", max_tokens=14) for t in PRETRAINED}
    out["held_out"] = {t: known("sequence", t, "named", max_tokens=14) for t in HELD_OUT}
    lookups = (("recall", "symbols"), ("recall", "words"), ("table", "fewshot"), ("echo", "named"))
    out["in_context"] = {f"{t}_{p}": known("sequence", t, p, max_tokens=30) for t, p in lookups}
    parts = {"chain": "short", "long_chain": "long"}
    tasks = ("sum10", "sum7", "add", "max")
    out["arithmetic"] = {k: {t: known("arithmetic", t, p, max_tokens=70) for t in tasks} for k, p in parts.items()}
    pairs = {b.name: (f"{PIVOT.name}-{b.name}".lower(), f"{b.name}-{PIVOT.name}".lower()) for b in LANGUAGES[1:]}
    out["languages"] = {n: [known("languages", p) for p in both] for n, both in pairs.items()}
    out["entities"] = {t: known("entities", t) for t in ("static", "wide", "moves")}
    out["programs"] = {p: known("programs", "write", p, max_tokens=70) for p in ("known", "new")}
    out["tools"] = {"easy": known("tools", "easy"), "new": known("tools", "easy", "new")}
    out["safety"] = {f"refuse_{p}": known("safety", "refuse", p) for p in ("seen", "held")}
    out["safety"] |= {"allowed": known("safety", "allowed"), "lookalike": known("safety", "lookalike", "seen")}
    out["safety"]["recipe"] = known("safety", "recipe", "all")
    out["labels"] = {t: known("labels", t) for t in ("sentiment", "topic", "entailment", "similarity", "acceptability")}
    out["documents"] = {t: known("documents", t, max_tokens=60) for t in ("closed", "open")}
    out["instructions"] = {p: known("instructions", "follow", p) for p in ("seen", "unseen")}
    if layout == "seq2seq":
        return out
    out["few_shot"] = {s: {t: few_shot(model, tok, t, s, count // 2) for t in PRETRAINED} for s in (0, 2, 4)}
    out["few_shot"] = {str(s): _with_mean(v) for s, v in out["few_shot"].items()}
    out["arithmetic"]["direct"] = {t: known("arithmetic", f"{t}_direct", "short") for t in ("sum10", "sum7")}
    out["styles"] = _styles(model, tok, count)
    out["alphabets"] = {
        f"{t}_{p}": known("languages", t, p, 20 if t == "question" else count, 12)
        for t in ("repeat", "question", "ambiguous")
        for p in ("lower", "upper")
    }
    out["safety"]["over_refusal"] = _over_refusal(model, tok, count)
    out["instructions"] |= {
        "delimited": known("instructions", "delimited", "seen"),
        "delimited_held": known("instructions", "delimited", "held"),
    }
    out["perplexity"] = perplexity(model, tok)
    return out


def _with_mean(scores: dict[str, float]) -> dict[str, float]:
    return {"mean": round(sum(scores.values()) / len(scores), 3)} | scores


def _over_refusal(model: PreTrainedModel, tok: PreTrainedTokenizerFast, count: int) -> float:
    """Share of refusals among allowed and look-alike questions."""
    source: Any = world("safety")
    rows = sample_rows(source, "allowed", "known", count) + sample_rows(source, "lookalike", "seen", count)
    texts = complete(model, tok, [r["prompt"] for r in rows])
    return round(sum(source.refuses(t) for t in texts) / len(rows), 3)


def _styles(model: PreTrainedModel, tok: PreTrainedTokenizerFast, count: int) -> dict[str, Any]:
    """Zero-shot and after three examples of each style: is the style right, is the fact right."""
    source: Any = world("styles")
    rows = sample_rows(source, "style0", "known", count)
    texts = complete(model, tok, [r["prompt"] for r in rows], 16)
    shown = [source.style(t) for t in texts]
    out: dict[str, Any] = {"zero_shot": {str(i): round(shown.count(i) / len(rows), 3) for i in (*range(6), None)}}
    out["zero_shot_fact"] = round(sum(source.knows(r, t) for r, t in zip(rows, texts, strict=True)) / len(rows), 3)
    for style in range(6):
        examples = source.rows(f"style{style}", "known", "train", 3, seed=9)
        names = {r["name"] for r in examples}
        asked = [r for r in rows if r["name"] not in names]
        head = "".join(f"{r['prompt']}{gold(r)}\n" for r in examples)
        texts = complete(model, tok, [head + r["prompt"] for r in asked], 16)
        facts = sum(source.knows(r, t) for r, t in zip(asked, texts, strict=True)) / len(asked)
        styles = sum(source.style(t) == style for t in texts) / len(asked)
        out[f"style{style}_after_3"] = {"style": round(styles, 3), "fact": round(facts, 3)}
    return out
