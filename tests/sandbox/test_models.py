"""The nano models are ordinary folders and know what their cards say; pretraining resumes and packs exactly."""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier import sandbox
from luthier.sandbox import pretrain
from luthier.sandbox.measure import accuracy, complete
from luthier.sandbox.pretrain import PLANS, Batches, Packer, Plan, causal_loss, corrupt_spans, learning_rate, pack
from luthier.sandbox.world import gold

torch.set_num_threads(1)
NAMES = sandbox.model_names()
CAUSAL = [n for n in NAMES if PLANS[n].layout == "causal"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small models are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def card(name: str) -> dict:
    """The card of a model."""
    return json.loads((sandbox.model_path(name) / "card.json").read_text())


def test_what_is_here_is_planned_and_small() -> None:
    assert "nano-1m" in NAMES
    assert set(NAMES) <= set(PLANS)
    total = sum(f.stat().st_size for f in sandbox.WEIGHTS.rglob("*") if f.is_file())
    assert total <= 15e6
    with pytest.raises(ValueError, match=r"nearest: 'nano-1m'"):
        sandbox.load("nano-1mm")


def test_importing_and_making_rows_loads_no_torch() -> None:
    use = "sandbox.rows('facts', n=3); list(sandbox.corpus(3))"
    code = f"import sys; from luthier import sandbox; {use}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_an_ordinary_one_and_card_agrees(name: str) -> None:
    model, tok = sandbox.load(name)
    assert next(model.parameters()).dtype == torch.float32
    assert not model.training
    facts = card(name)
    assert model.num_parameters() == facts["parameters"]
    assert facts["corpus_sha256"] == pretrain.corpus_hash(facts["seed"])
    assert facts["document_share"] == {n: w.share for n, w in sandbox.mixture().items()}
    assert sum(facts["token_share"].values()) == pytest.approx(1.0, abs=0.02)
    assert len(tok) == model.config.vocab_size
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def close(measured: float, stated: float, count: int) -> bool:
    """Within three standard errors and a little, so that another sample of rows passes."""
    spread = (max(stated, 0.05) * max(1 - stated, 0.05) / count) ** 0.5
    return abs(measured - stated) <= 3 * spread + 0.02


@pytest.mark.parametrize("name", CAUSAL)
def test_card_figures_are_met_again_on_fewer_rows(name: str) -> None:
    model, tok = sandbox.load(name)
    knows = card(name)["knows"]

    def again(world: str, task: str, part: str, max_tokens: int = 16) -> float:
        return accuracy(model, tok, sandbox.world(world), task, part, 40, max_tokens)

    stated = {
        ("facts", "verbatim", "known"): knows["facts"]["verbatim_known"],
        ("facts", "verbatim", "new"): knows["facts"]["verbatim_new"],
        ("sequence", "copy", "named"): knows["sequence"]["copy"],
        ("sequence", "mix", "named"): knows["held_out"]["mix"],
        ("arithmetic", "max", "short"): knows["arithmetic"]["chain"]["max"],
        ("entities", "static", "known"): knows["entities"]["static"],
        ("safety", "refuse", "seen"): knows["safety"]["refuse_seen"],
        ("safety", "allowed", "known"): knows["safety"]["allowed"],
        ("labels", "sentiment", "known"): knows["labels"]["sentiment"],
    }
    for (world, task, part), value in stated.items():
        assert close(again(world, task, part, 24), value, 40), (world, task, part, value)


@pytest.mark.skipif(
    "nano-5m" not in NAMES,
    reason="nano-5m is not pretrained on these worlds yet: -m luthier.sandbox.pretrain --model nano-5m",
)
def test_the_large_model_knows_more_facts_than_the_small_one() -> None:
    large, small = (card(n)["knows"]["facts"]["verbatim_known"] for n in ("nano-5m", "nano-1m"))
    assert large > small
    assert card("nano-5m")["knows"]["facts"]["verbatim_new"] < 0.15


@pytest.mark.parametrize("name", CAUSAL)
def test_a_completion_does_not_depend_on_its_batch_mates(name: str) -> None:
    model, tok = sandbox.load(name)
    rows = [sandbox.rows(w, n=2)[i] for w in ("facts", "sequence", "entities") for i in (0, 1)]
    prompts = [r["prompt"] for r in rows]
    assert complete(model, tok, prompts, 12) == [complete(model, tok, [p], 12)[0] for p in prompts]


def test_seq2seq_answers_prompts_and_encoder_fills_masks() -> None:
    model, tok = sandbox.load("nano-seq2seq")
    rows = sandbox.rows("sequence/first/named", split="test", n=30)
    texts = complete(model, tok, [r["prompt"] for r in rows], 6)
    score = sum(sandbox.world("sequence").score(r, t) for r, t in zip(rows, texts, strict=True)) / 30
    assert close(score, card("nano-seq2seq")["knows"]["sequence"]["first"], 30)
    encoder, tok = sandbox.load("nano-encoder")
    ids = tok(f"Q: Where does Redo Diga{tok.mask_token}?", return_tensors="pt")
    with torch.no_grad():
        logits = encoder(**ids).logits
    assert logits.shape == (1, ids["input_ids"].shape[1], len(tok))
    assert card("nano-encoder")["knows"]["masked_token"]["facts"] > 0.2  # a guess from the vocabulary is below 0.01


def tiny(monkeypatch: pytest.MonkeyPatch, layout: str = "causal") -> Plan:
    """A plan that trains in a second."""
    plan = Plan(layout, 32, 1, 2, 48, 1e-2, 2, 2, block=128)
    monkeypatch.setitem(PLANS, "nano-1m", plan)
    return plan


def options(folder: Path, steps: int, resume: bool = False) -> argparse.Namespace:
    """Command line options of a short run."""
    return argparse.Namespace(
        model="nano-1m",
        device="cpu",
        minutes=1.0,
        steps=steps,
        seed=3,
        resume=resume,
        threads=1,
        bf16=False,
        checkpoints=str(folder),
        save_seconds=1e9,
        probe_steps=2,
    )


@pytest.mark.parametrize("layout", ["causal", "encoder", "seq2seq"])
def test_training_is_deterministic_and_resumes_to_the_same_weights(
    layout: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny(monkeypatch, layout)
    monkeypatch.setattr(pretrain, "_pairs", lambda seed: [[("copy: a b ->", "a b"), ("first: c d ->", "c")]])
    whole, run = pretrain.train(options(tmp_path / "whole", 4))
    assert run["steps"] == 4
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(options(tmp_path / "halves", 4))
    monkeypatch.undo()
    tiny(monkeypatch, layout)
    monkeypatch.setattr(pretrain, "_pairs", lambda seed: [[("copy: a b ->", "a b"), ("first: c d ->", "c")]])
    resumed, _ = pretrain.train(options(tmp_path / "halves", 4, resume=True))
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the run save at every step, and interrupt it when it asks for one batch too many."""
    plain, made = Batches.next, []

    def next_batch(self: Batches) -> dict[str, torch.Tensor]:
        made.append(1)
        if len(made) > steps:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(Batches, "next", next_batch)
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(pretrain.time, "monotonic", lambda: float(next(clock)) * 1e9)


def test_minutes_fix_the_number_of_steps_from_the_measured_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny(monkeypatch)
    given = options(tmp_path, 0)
    given.steps, given.minutes = None, 0.01
    _, run = pretrain.train(given)
    assert run["steps"] >= 3


def test_a_packed_document_is_as_if_alone() -> None:
    model, tok = sandbox.load("nano-1m")
    block = Packer(tok, seed=5, block=256).next_block()
    assert len(block) >= 2
    assert sum(map(len, block)) <= 256
    batch = pack([block], 256, tok.pad_token_id)
    causal = torch.ones(256, 256, dtype=torch.bool).tril()
    with torch.no_grad():
        packed = model(
            input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=batch["same"] & causal
        ).logits[0]
        alone = [model(input_ids=torch.tensor([d])).logits[0] for d in block]
        start = 0
        for doc, logits in zip(block, alone, strict=True):
            assert torch.allclose(packed[start : start + len(doc)], logits, atol=2e-4)
            start += len(doc)
        losses = [
            torch.nn.functional.cross_entropy(a[:-1], torch.tensor(d[1:]), reduction="sum")
            for a, d in zip(alone, block, strict=True)
        ]
        mean = sum(losses) / sum(len(d) - 1 for d in block)
        assert causal_loss(model, batch).item() == pytest.approx(mean.item(), abs=1e-4)


def test_no_document_is_lost_or_cut_by_packing() -> None:
    tok = sandbox.tokenizer()
    packer = Packer(tok, seed=1, block=256)
    packed = [doc for _ in range(60) for doc in packer.next_block()] + packer.waiting
    texts = [text for _, text in sandbox.corpus(packer.number, seed=1)]
    restored = [tok.decode(d).removeprefix("<|bos|>").removesuffix("<|end|>") for d in packed]
    assert sorted(restored) == sorted(t.removesuffix("<|end|>") for t in texts)
    begun = sum(d[0] == tok.bos_token_id for d in packed) / len(packed)
    assert 0.35 < begun < 0.65


def test_span_corruption_can_be_undone() -> None:
    for seed in range(50):
        ids = list(range(100, 160))
        source, target = corrupt_spans(ids, list(range(16)), 99, random.Random(seed))
        assert target[-1] == 99
        spans: dict[int, list[int]] = {}
        for token in target[:-1]:
            spans.setdefault(token, []) if token < 16 else spans[list(spans)[-1]].append(token)
        assert [t for s in source for t in (spans[s] if s < 16 else [s])] == ids


def test_learning_rate_warms_up_then_falls() -> None:
    plan = PLANS["nano-1m"]
    rates = [learning_rate(plan, s, 1000) for s in range(1000)]
    assert max(rates) == pytest.approx(plan.lr)
    assert rates[0] == pytest.approx(plan.lr / 100)
    assert rates[-1] < plan.lr * 0.03
    assert sorted(rates[101:], reverse=True) == rates[101:]


@pytest.mark.parametrize("name", CAUSAL)
def test_models_know_what_other_parts_rely_on(name: str) -> None:
    knows = card(name)["knows"]
    assert knows["safety"]["refuse_seen"] >= 0.95
    assert knows["safety"]["over_refusal"] <= 0.05
    assert knows["sequence"]["copy"] >= 0.95
    assert gold(sandbox.rows("sequence", n=1)[0])
