"""Drafts: the same tokens when greedy, the same distribution when drawn, caches as of a fresh forward, honest counts."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from tiny_models import gpt2, llama, t5, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.method import Limits, LuthierError, Refusal
from luthier.decoding._family import _DecoderStream, pick_columns, stream
from luthier.decoding.beam import Beam
from luthier.decoding.eft_upscale import EFTUpscale
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.decoding.speculative import Speculative

PROMPTS = ["the cat", "in an on abcd er", "x", "1212 12 th", "hello there, how are you?"]


def ids() -> list[list[int]]:
    return [tokenizer()(p)["input_ids"] for p in PROMPTS]


def near(model: Any, seed: int, much: float = 0.2) -> Any:
    out, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters():
            p.add_(much * p.std() * torch.randn(p.shape, generator=rng))
    return out


@pytest.mark.parametrize("make", [llama, gpt2, t5], ids=lambda m: m.__name__)
def test_greedy_drafts_give_the_greedy_tokens(make: Any) -> None:
    """Whatever drafts: a model near the target, the target itself, or one that is always wrong; stops included."""
    model = make(0)
    for limits in (Limits(13, (2, 30, 48), 0), Limits(1, (), 0), Limits(6, (), 0)):
        plain = Greedy().generate(model, ids(), limits)
        for draft in (near(model, 0, 0.05), model, make(1)):
            for tokens in (1, 4):
                found = Speculative(draft=draft, tokens=tokens, temperature=0.0).generate(model, ids(), limits)
                assert [(g.ids, g.stopped) for g in found] == [(g.ids, g.stopped) for g in plain]
                for g, p in zip(found, plain, strict=True):
                    assert g.logp == pytest.approx(p.logp, abs=2e-3)


def test_up_scaled_drafts_give_the_up_scaled_tokens() -> None:
    base, small, limits = llama(0), llama(1), Limits(15, (2, 30), 0)
    tuned = near(small, 0)
    for make in (lambda k: EFTUpscale(tuned=tuned, reference=small, draft_tokens=k),
                 lambda k: ProxyTuning(expert=tuned, anti_expert=small, alpha=0.6, draft_tokens=k)):  # fmt: skip
        plain = make(0).generate(base, ids(), limits)
        for tokens in (1, 3, 6):
            found = make(tokens).generate(base, ids(), limits)
            assert [(g.ids, g.stopped) for g in found] == [(g.ids, g.stopped) for g in plain]


def test_a_draft_model_that_is_the_target_is_always_accepted() -> None:
    model = llama(0)
    for decoder in (
        Speculative(draft=model, tokens=4, temperature=0.7, top_p=0.9),
        Speculative(draft=model, tokens=4, temperature=0.0),
        EFTUpscale(
            tuned=near(model, 0), reference=model, draft_tokens=4, choose=Nucleus(top_p=1.0)
        ),  # base = reference
    ):
        found = decoder.generate(model, ids(), Limits(16, (), 0, seed=1))
        drafted, accepted = (sum(g.figures[k] for g in found) for k in ("drafted", "accepted"))
        assert accepted >= 0.98 * drafted > 0  # equal up to rounding, where the sum is p only up to rounding
        assert all(g.figures["reads"] == 3 for g in found), "1 + 3 x (4 + 1) tokens"


def test_counts_are_of_tokens_that_were_kept() -> None:
    found = Speculative(draft=llama(1), tokens=4, temperature=0.0).generate(llama(0), ids(), Limits(14, (), 0))
    for g in found:
        assert len(g.ids) == 14
        assert g.figures["accepted"] + g.figures["reads"] + 1 == 14  # the first token comes from the prompt
        assert g.figures["accepted"] <= g.figures["drafted"] <= 4 * g.figures["reads"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_alone_are_rows_in_a_batch(temperature: float) -> None:
    """Rows accept different numbers of drafts: their caches are re-packed, and their random numbers are their own."""
    for make in (llama, gpt2, t5):
        model = make(0)
        decoder = Speculative(draft=near(model, 0), tokens=3, temperature=temperature)
        together = decoder.generate(model, ids(), Limits(16, (2, 30), 0, seed=5))
        assert len({g.figures["accepted"] for g in together}) > 1, "acceptance must be ragged for this to mean anything"
        for row, g in zip(ids(), together, strict=True):
            alone = decoder.generate(model, [row], Limits(16, (2, 30), 0, seed=5))[0]
            assert (alone.ids, alone.stopped, alone.figures) == (g.ids, g.stopped, g.figures)


def test_drafts_beyond_the_window_of_learned_positions() -> None:
    """A row near its end in a batch with one that is not: what is drafted past its last token needs no position."""
    model, long, short = gpt2(0), [7] * 118, [9] * 5  # the window is 128
    limits = Limits(10, (), 0)
    found = Speculative(draft=model, tokens=6, temperature=0.0).generate(model, [long, short], limits)
    worse = Speculative(draft=gpt2(1), tokens=6, temperature=0.0).generate(model, [long, short], limits)
    for row, a, b in zip((long, short), found, worse, strict=True):
        assert a.ids == b.ids == Greedy().generate(model, [row], limits)[0].ids


@torch.no_grad()
@pytest.mark.parametrize("make", [llama, gpt2], ids=lambda m: m.__name__)
def test_caches_after_a_rejection_are_those_of_a_fresh_forward(make: Any) -> None:
    source = stream(make(0))
    assert isinstance(source, _DecoderStream)
    source.start(ids())
    said = torch.arange(10, 10 + 5 * 4).view(5, 4) + 30
    source.extend(said)
    back = torch.tensor([3, 0, 1, 4, 2])
    source.retract(back)
    kept = [[*row, *said[b, : 4 - back[b]].tolist()] for b, row in enumerate(ids())]
    fresh = stream(make(0))
    fresh.start(kept)
    assert source.seen.sum(1).tolist() == [len(k) for k in kept]
    assert source.seen.shape[1] == max(len(k) for k in kept), "no columns that nobody needs"
    assert torch.equal(source.next, fresh.next)
    for mine, theirs in zip(source.cache.layers, fresh.cache.layers, strict=True):
        for b, k in enumerate(kept):
            for x, y in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                assert float((x[b, :, -len(k) :] - y[b, :, -len(k) :]).abs().max()) < 1e-4
    more = torch.full((5, 2), 50)
    assert float((source.extend(more) - fresh.extend(more)).abs().max()) < 1e-3
    back = torch.tensor([1, 2, 0, 1, 1])
    for s in (source, fresh):
        s.retract(back)
        s.keep(torch.tensor([4, 1, 1]))
    token = torch.tensor([60, 61, 62])
    assert float((source.feed(token) - fresh.feed(token)).abs().max()) < 1e-3


def tiny(seed: int) -> LlamaForCausalLM:
    """A vocabulary of 8: texts of three tokens can be counted."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            initializer_range=0.5, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.4)  # not too sure of anything
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["speculative", "up_scaled", "nucleus", "temperature"])
def test_total_variation(kind: str) -> None:
    """The first three tokens, of which two are drafted: frequencies against exact probabilities of the plain decoder."""
    n, prompt, model = 20000, [3, 5], tiny(0)
    small = tiny(1)
    tuned = near(small, 0, 0.5)
    plain: Any = {"nucleus": Nucleus(top_p=0.7, top_k=6), "temperature": Nucleus(temperature=0.6, top_p=1.0)}.get(
        kind, Nucleus(top_p=1.0)
    )
    if kind == "up_scaled":
        decoder: Any = EFTUpscale(tuned=tuned, reference=small, draft_tokens=2, choose=plain)
    else:
        decoder = Speculative(
            draft=tuned, tokens=2, temperature=plain.temperature, top_p=plain.top_p, top_k=plain.top_k
        )
    said = decoder.generate(model, [prompt] * n, Limits(4, (), 0, seed=4))
    asked = decoder.over(model)
    past = [list(t) for k in range(3) for t in product(range(8), repeat=k)]
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for k in range(3):
        some = [t for t in past if len(t) == k]
        p = plain.probability(stream(asked).start([[*prompt, *t] for t in some]))
        exact |= {(*t, v): exact[tuple(t)] * float(p[i, v]) for i, t in enumerate(some) for v in range(8)}
    whole = {t: p for t, p in exact.items() if len(t) == 3}
    found = Counter(tuple(g.ids[:3]) for g in said)
    apart = 0.5 * sum(abs(found[t] / n - p) for t, p in whole.items())
    noise = 0.4 * sum((p * (1 - p) / n) ** 0.5 for p in whole.values())
    assert apart < 1.25 * noise, f"total variation {apart:.4f}; {noise:.4f} is what {n} exact draws have"
    for k in (1, 2):  # the card's own figure, on shorter texts
        short = Counter(tuple(g.ids[:k]) for g in said)
        assert 0.5 * sum(abs(short[t] / n - p) for t, p in exact.items() if len(t) == k) < 0.02
    drafted, accepted = (sum(g.figures[f] for g in said) for f in ("drafted", "accepted"))
    assert 0.1 < accepted / drafted < 0.95, "both acceptance and rejection must be at work"


def test_what_cannot_be_drafted_is_refused() -> None:
    model = llama(0)
    with pytest.raises(Refusal, match="greedy and nucleus, not for beam"):
        EFTUpscale(tuned=model, reference=model, draft_tokens=2, choose=Beam()).generate(model, ids(), Limits(4))
    with pytest.raises(LuthierError, match=r"needs a model: give decoding\.draft"):
        Speculative()
    with pytest.raises(LuthierError, match="tokens >= 1"):
        Speculative(draft=model, tokens=0)

    class Window:
        pass

    cache = type("Cache", (), {"layers": [Window()]})()
    with pytest.raises(Refusal, match="a cache of Window cannot take tokens back"):
        pick_columns(cache, torch.zeros(1, 1, dtype=torch.long))
    assert Speculative(draft=model, temperature=0.5, top_p=0.9).alone() == Nucleus(temperature=0.5, top_p=0.9)
