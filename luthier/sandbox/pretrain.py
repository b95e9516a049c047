"""Pretrain a nano model on the sandbox corpus: `python -m luthier.sandbox.pretrain --model nano-1m --minutes 20`.

    causal     Llama layout, next-token loss on all tokens
    encoder    BERT layout, masked-LM loss on a quarter of the tokens (80 % mask token, 10 % random, 10 % kept)
    seq2seq    T5 layout, half span corruption of documents, half prompt -> completion rows of the train split

Documents are packed whole into blocks; inside a block each document attends only to itself and its positions start at
0. Half of the documents begin with the bos token, so that prompts with and without it are both familiar. Document
number n depends on seed and n alone; with the same seed and number of steps on the same device the run is
deterministic, and a resumed run continues the very same stream. `--minutes` measures the first steps and fixes the
number of steps, hence the cosine. Weights are rounded to float16 before they are measured (`measure.py`) and written
with a `card.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from luthier.sandbox import WEIGHTS, corpus, load, mixture, tokenizer
from luthier.sandbox.tokens import CONTEXT, SENTINELS, shaped
from luthier.sandbox.world import gold, nearest

IGNORE = -100
SPAN = 3  # mean length of a corrupted span
CORRUPTED = 0.15


@dataclass(frozen=True)
class Plan:
    """Shape of a model and how it is trained on a CPU; `gpu_rows` replaces `rows` on CUDA."""

    layout: str
    width: int
    layers: int
    heads: int
    inner: int
    lr: float
    rows: int  # blocks per step
    gpu_rows: int
    block: int = 256
    weight_decay: float = 0.05
    warmup_steps: int = 100


PLANS = {
    "nano-1m": Plan("causal", 128, 4, 4, 352, 7e-3, 8, 32),
    "nano-5m": Plan("causal", 256, 5, 8, 688, 5e-3, 10, 64),
    "nano-encoder": Plan("encoder", 112, 4, 4, 384, 4e-3, 16, 64, block=128),
    "nano-seq2seq": Plan("seq2seq", 112, 2, 4, 384, 4e-3, 32, 128, block=128),
}


def make_model(name: str, seed: int) -> PreTrainedModel:
    """A freshly initialised model."""
    torch.manual_seed(seed)
    plan, tok = PLANS[name], tokenizer()
    ids: dict[str, Any] = {
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "tie_word_embeddings": True,
    }
    if plan.layout == "encoder":
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(tok),
                hidden_size=plan.width,
                num_hidden_layers=plan.layers,
                num_attention_heads=plan.heads,
                intermediate_size=plan.inner,
                max_position_embeddings=plan.block,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **ids,
            )
        )
    if plan.layout == "seq2seq":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tok),
                d_model=plan.width,
                d_kv=plan.width // plan.heads,
                d_ff=plan.inner,
                num_layers=plan.layers,
                num_heads=plan.heads,
                dropout_rate=0.0,
                **ids | {"decoder_start_token_id": tok.pad_token_id},
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tok),
            hidden_size=plan.width,
            intermediate_size=plan.inner,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.heads,
            num_key_value_heads=plan.heads,
            max_position_embeddings=CONTEXT,
            **ids,
        )
    )


def encode(tok: PreTrainedTokenizerFast, text: str, bos: bool, limit: int) -> list[int]:
    """Token ids of one document and its end token; one that is too long is cut, and then has no end token."""
    ids = ([tok.bos_token_id] if bos else []) + tok(text, add_special_tokens=False).input_ids
    if ids[-1] != tok.eos_token_id:
        ids.append(tok.eos_token_id)
    return ids[:limit]


@dataclass
class Packer:
    """Whole documents into blocks: the longest waiting document that still fits comes next."""

    tok: PreTrainedTokenizerFast
    seed: int
    block: int
    always_bos: bool = False
    number: int = 0  # of the next document
    waiting: list[list[int]] = field(default_factory=list)

    def next_block(self) -> list[list[int]]:
        """The documents of one block, together at most `block` tokens."""
        room = self.block
        out: list[list[int]] = []
        while True:
            self._refill()
            fitting = [i for i, d in enumerate(self.waiting) if len(d) <= room]
            if not fitting:
                return out
            best = fitting[0] if not out else max(fitting, key=lambda i: (len(self.waiting[i]), -i))
            out.append(self.waiting.pop(best))
            room -= len(out[-1])

    def _refill(self) -> None:
        missing = 48 - len(self.waiting)
        for _, text in corpus(missing, self.seed, self.number):
            bos = self.always_bos or random.Random(f"{self.seed}/bos/{self.number}").random() < 0.5
            self.waiting.append(encode(self.tok, text, bos, self.block))
            self.number += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to continue the stream."""
        return {"number": self.number, "waiting": self.waiting}


def pack(blocks: list[list[list[int]]], length: int, pad: int) -> dict[str, torch.Tensor]:
    """Ids, positions and the mask (True: may be attended to) of blocks of documents, each (B, T) or (B, 1, T, T)."""
    ids = torch.full((len(blocks), length), pad)  # (B, T)
    positions, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    for b, docs in enumerate(blocks):
        start = 0
        for number, doc in enumerate(docs, 1):
            end = start + len(doc)
            ids[b, start:end] = torch.tensor(doc)
            positions[b, start:end] = torch.arange(len(doc))
            segments[b, start:end] = number
            start = end
    same = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T); padding is a segment of its own
    return {"ids": ids, "positions": positions, "segments": segments, "same": same}


def causal_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean next-token loss over all tokens that have a predecessor in their document."""
    ids, segments = batch["ids"], batch["segments"]
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    hidden = model.model(
        input_ids=ids, position_ids=batch["positions"], attention_mask=batch["same"] & causal, use_cache=False
    ).last_hidden_state
    counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)  # (B, T-1)
    logits = model.lm_head(hidden[:, :-1][counted])  # (N, V)
    return F.cross_entropy(logits.float(), ids[:, 1:][counted])


def masked_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss over the masked tokens."""
    hidden = model.bert(
        input_ids=batch["noised"], position_ids=batch["positions"], attention_mask=batch["same"]
    ).last_hidden_state
    logits = model.cls(hidden[batch["chosen"]])  # (N, V)
    return F.cross_entropy(logits.float(), batch["ids"][batch["chosen"]])


def mask_tokens(
    batch: dict[str, torch.Tensor], tok: PreTrainedTokenizerFast, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Choose a quarter of the tokens; 80 % become the mask, 10 % a random token, 10 % stay."""
    ids = batch["ids"]
    draw, kind = torch.rand(ids.shape, generator=rng), torch.rand(ids.shape, generator=rng)
    chosen = (draw < 0.25) & (batch["segments"] > 0)
    noised = torch.where(chosen & (kind < 0.8), tok.mask_token_id, ids)
    other = torch.randint(len(tok), ids.shape, generator=rng)
    return batch | {"noised": torch.where(chosen & (kind >= 0.9), other, noised), "chosen": chosen}


def corrupt_spans(ids: list[int], sentinels: list[int], end: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """T5 span corruption: spans become sentinels in the source, and are spelled out after them in the target."""
    source, target, place, used = [], [], 0, 0
    while place < len(ids):
        if used < len(sentinels) and rng.random() < CORRUPTED / SPAN:
            length = rng.randint(1, 2 * SPAN - 1)
            source.append(sentinels[used])
            target += [sentinels[used], *ids[place : place + length]]
            place, used = place + length, used + 1
        else:
            source.append(ids[place])
            place += 1
    return source, [*target, end]


@dataclass
class Batches:
    """The stream of training batches of one model; its state goes into checkpoints."""

    plan: Plan
    tok: PreTrainedTokenizerFast
    seed: int
    rows: int
    step: int = 0

    def __post_init__(self) -> None:
        self.packer = Packer(self.tok, self.seed, self.plan.block, always_bos=self.plan.layout == "encoder")
        self.pairs = _pairs(self.seed) if self.plan.layout == "seq2seq" else []
        self.sentinels = [int(self.tok.convert_tokens_to_ids(t)) for t in SENTINELS]  # type: ignore[arg-type]

    def next(self) -> dict[str, torch.Tensor]:
        """The next batch."""
        self.step += 1
        if self.plan.layout == "seq2seq":
            return self._pair_batch(random.Random(f"{self.seed}/step/{self.step}"))
        batch = pack([self.packer.next_block() for _ in range(self.rows)], self.plan.block, self.tok.pad_token_id)
        if self.plan.layout == "encoder":
            return mask_tokens(batch, self.tok, torch.Generator().manual_seed(self.seed * 1_000_003 + self.step))
        return batch

    def _pair_batch(self, rng: random.Random) -> dict[str, torch.Tensor]:
        pairs: list[tuple[list[int], list[int]]] = []
        for _ in range(self.rows // 2):
            _, text = next(corpus(1, self.seed, self.packer.number))
            self.packer.number += 1
            ids = encode(self.tok, text, False, self.plan.block)[:-1]
            source, target = corrupt_spans(ids, self.sentinels, self.tok.eos_token_id, rng)
            pairs.append(([*source, self.tok.eos_token_id], target))
            prompt, completion = rng.choice(rng.choice(self.pairs))
            pairs.append((self._ended(prompt), self._ended(completion)))
        return {
            "ids": _padded([p[0] for p in pairs], self.tok.pad_token_id),
            "labels": _padded([p[1] for p in pairs], IGNORE),
        }

    def _ended(self, text: str) -> list[int]:
        return [*self.tok(text).input_ids[: self.plan.block], self.tok.eos_token_id]


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([r + [value] * (width - len(r)) for r in rows])  # (B, T)


def _pairs(seed: int) -> list[list[tuple[str, str]]]:
    """Prompts and completions of every pretrained task, train split; one list per world, so that worlds weigh alike."""
    out = []
    for world in mixture().values():
        mine = []
        for name, task in world.catalogue.items():
            for part in task.pretrained if task.kind == "prompt" else ():
                try:
                    rows = world.rows(name, part, n=400, seed=seed)
                except ValueError:  # a small task: all it has
                    rows = [
                        world._finish(name, part, "train", i, seed) for i in world._finite(name, part, "train", seed)
                    ]
                mine += [(r["prompt"], gold(r).strip()) for r in rows]
        out.append(mine)
    return out


def loss_of(model: PreTrainedModel, plan: Plan, batch: dict[str, torch.Tensor], pad: int) -> torch.Tensor:
    """The pretraining loss of the model's layout."""
    if plan.layout == "seq2seq":
        return model(input_ids=batch["ids"], attention_mask=(batch["ids"] != pad).long(), labels=batch["labels"]).loss
    return (masked_loss if plan.layout == "encoder" else causal_loss)(model, batch)


def learning_rate(plan: Plan, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak; `step` counts from 0."""
    warm = min(plan.warmup_steps, max(1, steps // 10))
    if step < warm:
        return plan.lr * (step + 1) / warm
    return plan.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def make_optimisers(model: PreTrainedModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and vectors, both at the same rate (RMS-matched).

    Measured on this corpus, nano-5m, 200 steps of 2,048 tokens: loss 1.31 with Muon, 1.64 with AdamW alone. On a CPU
    a step costs a quarter more.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and id(m.weight) not in tables]
    inside = {id(p) for p in linear}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            linear, lr=plan.lr, momentum=0.95, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pick_device(wanted: str) -> torch.device:
    """`auto`: CUDA where there is one."""
    return torch.device(
        "cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu" if wanted == "auto" else wanted
    )


def pretrain(options: argparse.Namespace) -> Path:
    """Train, measure, write; returns the model's folder."""
    return write(options.model, *train(options), Path(options.out))


def train(options: argparse.Namespace) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The trained model, in float32, and what its card says about the run."""
    plan, device = PLANS[options.model], pick_device(options.device)
    torch.set_num_threads(options.threads)
    tok = tokenizer()
    model: Any = make_model(options.model, options.seed)
    model.to(device).train()
    optimisers = make_optimisers(model, plan)
    batches = Batches(plan, tok, options.seed, plan.gpu_rows if device.type == "cuda" else plan.rows)
    checkpoint = Path(options.checkpoints) / f"{options.model}.pt"
    progress: dict[str, Any] = {"step": 0, "steps": options.steps or 0, "tokens": 0, "seconds": 0.0}
    if options.resume and checkpoint.exists():
        progress = _restore(checkpoint, model, optimisers, batches)
        print(f"resumed at step {progress['step']} of {progress['steps']}", flush=True)
    half = device.type == "cuda" or options.bf16
    started, losses = time.monotonic() - progress["seconds"], []
    saved = logged = time.monotonic()
    while not progress["steps"] or progress["step"] < progress["steps"]:
        if not progress["steps"] and progress["step"] == options.probe_steps:
            rate = (time.monotonic() - started) / options.probe_steps
            progress["steps"] = max(options.probe_steps + 1, int(options.minutes * 60 / rate))
            print(f"{rate:.3f} s a step: {progress['steps']} steps in {options.minutes} minutes", flush=True)
        # before the length is known the run is still in its warm-up, which does not depend on it
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = learning_rate(plan, progress["step"], progress["steps"] or 10**9)
        batch = {k: v.to(device) for k, v in batches.next().items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model, plan, batch, tok.pad_token_id)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        losses.append(loss.detach())
        progress["step"] += 1
        progress["tokens"] += int((batch["ids"] != tok.pad_token_id).sum())
        progress["seconds"] = time.monotonic() - started
        if time.monotonic() - logged > 20:
            mean = torch.stack(losses[-100:]).mean().item()
            print(
                f"step {progress['step']}/{progress['steps']} loss {mean:.4f} {progress['seconds']:.0f} s", flush=True
            )
            logged = time.monotonic()
        if time.monotonic() - saved > options.save_seconds:
            _checkpoint(checkpoint, model, optimisers, batches, progress)
            saved = time.monotonic()
    _checkpoint(checkpoint, model, optimisers, batches, progress)
    return model.cpu(), {
        "seed": options.seed,
        "steps": progress["steps"],
        "tokens_seen": progress["tokens"],
        "seconds": round(progress["seconds"]),
        "device": device.type,
        "bf16": half,
        "rows_per_step": batches.rows,
        "last_loss": round(torch.stack(losses[-200:]).mean().item(), 4) if losses else None,
    }


def _checkpoint(
    path: Path, model: PreTrainedModel, optimisers: list[torch.optim.Optimizer], batches: Batches, progress: dict
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers], "progress": progress}
    torch.save(state | {"stream": batches.packer.state(), "batch": batches.step}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _restore(path: Path, model: PreTrainedModel, optimisers: list[torch.optim.Optimizer], batches: Batches) -> dict:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    batches.packer.number, batches.packer.waiting = state["stream"]["number"], state["stream"]["waiting"]
    batches.step = state["batch"]
    return state["progress"]


def corpus_hash(seed: int, count: int = 2000) -> str:
    """A digest of the first documents of a corpus: another generator, seed or share gives another one."""
    digest = hashlib.sha256()
    for name, text in corpus(count, seed):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()


def token_shares(seed: int, count: int = 3000) -> dict[str, float]:
    """Measured share of pretraining tokens by world."""
    tok, totals = tokenizer(), dict.fromkeys(mixture(), 0)
    for name, text in corpus(count, seed):
        totals[name] += len(tok(text).input_ids)
    return {name: round(total / sum(totals.values()), 3) for name, total in totals.items()}


def write(name: str, model: PreTrainedModel, run: dict[str, Any], out: Path) -> Path:
    """Round to float16, write the folder, measure what was written, write its card."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.eval().half().save_pretrained(folder)
    shaped(tokenizer(), PLANS[name].layout).save_pretrained(folder)
    card = {
        "name": name,
        "layout": PLANS[name].layout,
        "parameters": model.num_parameters(),
        **run,
        "corpus_sha256": corpus_hash(run["seed"]),
        "document_share": {n: w.share for n, w in mixture().items()},
        "token_share": token_shares(run["seed"]),
    }
    _write_card(folder, card)
    evaluate(name, out)
    return folder


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def evaluate(name: str, out: Path = WEIGHTS) -> dict[str, Any]:
    """Measure the model on disk again and put the figures into its card."""
    from luthier.sandbox.measure import measure

    card = json.loads((out / name / "card.json").read_text())
    model, tok = load(name, out / name)
    card["knows"] = measure(model, tok, PLANS[name].layout)
    _write_card(out / name, card)
    return card


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano-1m", help=", ".join(PLANS))
    parser.add_argument("--evaluate", metavar="NAME", help="measure a model that is on disk again, and nothing else")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="autocast on a CPU that has bfloat16 instructions")
    parser.add_argument("--checkpoints", default="runs/sandbox")
    parser.add_argument("--out", default=str(WEIGHTS))
    parser.add_argument("--save-seconds", type=float, default=180.0)
    parser.add_argument("--probe-steps", type=int, default=30, help="steps timed to turn --minutes into steps")
    options = parser.parse_args(arguments)
    name = options.evaluate or options.model
    if name not in PLANS:
        raise ValueError(nearest("nano model", name, list(PLANS)))
    torch.set_num_threads(options.threads)
    card = (
        evaluate(name, Path(options.out))
        if options.evaluate
        else json.loads((pretrain(options) / "card.json").read_text())
    )
    print(json.dumps(card["knows"], indent=1))


if __name__ == "__main__":
    main()
